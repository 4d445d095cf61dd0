"""Mean or sum of the terms of one pass on a GPU: one function of autograd, no launch for the terms.

The kernel that joins the sums forms the terms of the pairs beside them, and the one that prepares
the backward pass takes its upstream gradient from that of the loss. In the ops of contrastive.ops,
which serve every other call, terms, reduction and their gradients are launches of their own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from crossalign.contrastive.blocks import needs_own_pass
from crossalign.contrastive.combine import reduce_terms, term_weights
from crossalign.contrastive.ops import kept_for_backward, refuse_twice
from crossalign.contrastive.options import LossArguments
from crossalign.contrastive.problem import (
    PROBLEM_TENSORS,
    ContrastiveGrads,
    ContrastiveProblem,
    ContrastiveSums,
)
from crossalign.contrastive.sides import joined, needs_of
from crossalign.contrastive.terms import TermRules
from crossalign.operators.transforms import (
    ops_are_watched,
    requires_gradient,
    transforms_are_active,
)
from crossalign.precision import without_autocast

_NO_TENSORS: dict[str, Any] = dict.fromkeys(PROBLEM_TENSORS)
_NUM_TENSORS = len(PROBLEM_TENSORS)


def pair_loss_takes(arguments: LossArguments, rules: TermRules) -> bool:
    """Whether the loss is a mean or a sum of plain terms of one pass, which the kernels can run."""
    options, weights = arguments.options.in_both_directions(), arguments.weights
    return (
        not (ops_are_watched() or transforms_are_active())
        and set(options.directions) <= {"query_to_key", "key_to_query"}
        and (len(options.directions) == 1 or options.partition == "per_direction")
        and not (needs_own_pass(arguments) and len(options.directions) > 1)
        and rules.has_own_key
        and not rules.needs_logits
        and options.reduction != "none"
        and not (weights is not None and requires_gradient(weights))
        # In float16 coefficients are scaled by the largest gradient of the sums.
        and arguments.query.dtype != torch.float16
        and len(arguments.query) > 0
    )


def pair_loss(
    query: Tensor,
    key: Tensor,
    negatives: Tensor | None,
    problem: ContrastiveProblem,
    weights: Tensor | None,
    reduction: str,
    *,
    with_stats: bool,
) -> tuple[Tensor, ContrastiveSums]:
    """The reduced loss, differentiable in embeddings and problem.scale; the sums are not.

    weights: (N,) without gradient. reduction: "mean" or "sum".
    """
    loss, *sums = _PairLoss.apply(  # type: ignore[no-untyped-call]
        query, key, negatives, problem.scale, problem, weights, reduction, with_stats
    )
    return loss, ContrastiveSums(*sums)


class _PairLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        negatives: Tensor | None,
        scale: Tensor,
        problem: ContrastiveProblem,
        weights: Tensor | None,
        reduction: str,
        with_stats: bool,
    ) -> tuple[Tensor, ...]:
        from crossalign.kernels.contrastive_forward import contrastive_fwd

        kept = None
        if any(ctx.needs_input_grad):
            kept = kept_for_backward(query, key, negatives, *problem, True)
        terms = scale.new_empty(len(query))
        with without_autocast(query.device.type):
            candidates = joined(key, negatives)
            sums = contrastive_fwd(query, candidates, problem, None, with_stats, kept, terms)
            loss = reduce_terms(terms, weights, reduction)
            by_term, ctx.num_terms = term_weights(weights, reduction, len(query), scale.dtype)
        tensors = [getattr(problem, name) for name in PROBLEM_TENSORS]
        ctx.problem = problem._replace(**_NO_TENSORS)
        ctx.save_for_backward(query, key, negatives, by_term, kept, *tensors, *sums)
        ctx.mark_non_differentiable(*sums)
        ctx.set_materialize_grads(False)
        return (loss, *sums)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor | None, *others: None) -> tuple[Tensor | None, ...]:
        if upstream is None:
            return (None,) * 8
        needs_grad = ctx.needs_input_grad[:4]
        gradients = _PairGradients.apply(  # type: ignore[no-untyped-call]
            upstream, ctx.problem, ctx.num_terms, needs_grad, *ctx.saved_tensors
        )
        wanted = zip(gradients, needs_grad, strict=True)
        return (*(grad if is_needed else None for grad, is_needed in wanted), *(None,) * 4)


class _PairGradients(torch.autograd.Function):
    """Of query, key, negatives and scale; a function of its own, for its backward to refuse."""

    @staticmethod
    def forward(
        ctx: Any,
        upstream: Tensor,
        problem: ContrastiveProblem,
        num_terms: int,
        needs_grad: tuple[bool, ...],
        query: Tensor,
        key: Tensor,
        negatives: Tensor | None,
        by_term: Tensor | None,
        kept: Tensor | None,
        *saved: Tensor,
    ) -> tuple[Tensor, ...]:
        from crossalign.kernels.contrastive_backward import contrastive_bwd
        from crossalign.kernels.contrastive_coefficients import PairGradient

        tensors, sums = saved[:_NUM_TENSORS], ContrastiveSums(*saved[_NUM_TENSORS:])
        given: dict[str, Any] = dict(zip(PROBLEM_TENSORS, tensors, strict=True))
        problem = problem._replace(**given)
        none = upstream.new_empty(0)
        grads = ContrastiveGrads(*[none] * len(ContrastiveGrads._fields))
        grads = grads._replace(positive_logit=torch.empty_like(sums.positive_logit))
        with without_autocast(query.device.type):
            of_query, of_candidates, of_scale = contrastive_bwd(
                query,
                joined(key, negatives),
                problem,
                sums,
                grads,
                needs_of(needs_grad, key, negatives),
                kept,
                PairGradient(upstream, by_term),
                num_terms,
            )
        num_keys = len(key) if needs_grad[1] else 0
        return of_query, of_candidates[:num_keys], of_candidates[num_keys:], of_scale

    backward = staticmethod(refuse_twice)
