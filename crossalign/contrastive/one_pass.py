"""One direction, mean or sum, on a GPU: gradients from the exponentials of a single pass.

The counterpart of row_loss for the kernels: kernels.one_pass forms the products of the gradients
in the forward pass, while a chunk of exponentials is at hand, and the backward pass finishes them.
Where ops are recorded or transformed (torch.compile, torch.func) the two ops of contrastive.ops do
the same with one product more.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from crossalign.contrastive.combine import reduce_terms, term_weights
from crossalign.contrastive.ops import refuse_twice
from crossalign.contrastive.problem import ContrastiveProblem, ContrastiveSums
from crossalign.contrastive.sides import joined, needs_of
from crossalign.operators.transforms import ops_are_watched, transforms_are_active
from crossalign.precision import without_autocast


def one_pass_takes(query: Tensor, problem: ContrastiveProblem) -> bool:
    """Whether the kernels can form this problem's gradients in one pass."""
    if ops_are_watched() or transforms_are_active() or problem.symmetric:
        return False
    from crossalign.kernels.kept_exponentials import may_keep

    return may_keep(query, problem)


def one_pass_loss(
    query: Tensor,
    key: Tensor,
    negatives: Tensor | None,
    problem: ContrastiveProblem,
    weights: Tensor | None,
    reduction: str,
    *,
    with_stats: bool,
) -> tuple[Tensor, ContrastiveSums]:
    """The reduced loss, differentiable in the embeddings; the sums are not.

    problem: one that one_pass_takes. weights: (N,) without gradient. reduction: "mean" or "sum".
    """
    needs_grad = [x is not None and x.requires_grad for x in (query, key, negatives)]
    loss, *sums = _OnePassLoss.apply(  # type: ignore[no-untyped-call]
        query, key, negatives, weights, problem, reduction, with_stats, needs_grad
    )
    return loss, ContrastiveSums(*sums)


class _OnePassLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        negatives: Tensor | None,
        weights: Tensor | None,
        problem: ContrastiveProblem,
        reduction: str,
        with_stats: bool,
        needs_grad: Sequence[bool],
    ) -> tuple[Tensor, ...]:
        from crossalign.kernels.one_pass import one_pass_fwd

        needs = needs_of((*needs_grad, False), key, negatives)
        with without_autocast(query.device.type):
            sums, terms, result = one_pass_fwd(
                query,
                joined(key, negatives),
                problem,
                *term_weights(weights, reduction, query.shape[0], problem.scale.dtype),
                with_stats,
                needs,
            )
            loss = reduce_terms(terms, weights, reduction)
        ctx.problem, ctx.needs = _of_backward(problem), needs
        ctx.save_for_backward(query, key, negatives, problem.scale, *result)
        ctx.mark_non_differentiable(*sums)
        ctx.set_materialize_grads(False)
        return (loss, *sums)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor | None, *others: None) -> tuple[Tensor | None, ...]:
        if upstream is None:
            return (None,) * 8
        gradients = _OnePassGradients.apply(  # type: ignore[no-untyped-call]
            upstream, ctx.problem, ctx.needs, *ctx.saved_tensors
        )
        wanted = zip(gradients, ctx.needs_input_grad[:3], strict=True)
        return (*(grad if is_needed else None for grad, is_needed in wanted), *(None,) * 5)


class _OnePassGradients(torch.autograd.Function):
    """Of query, key and negatives; a function of its own, for its backward to refuse."""

    @staticmethod
    def forward(
        ctx: Any,
        upstream: Tensor,
        problem: ContrastiveProblem,
        needs: Any,
        query: Tensor,
        key: Tensor,
        negatives: Tensor | None,
        scale: Tensor,
        *result: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        from crossalign.kernels.one_pass import OnePass, one_pass_bwd

        of_query, of_candidates = one_pass_bwd(
            upstream,
            query,
            joined(key, negatives),
            problem._replace(scale=scale),
            OnePass(*result),
            needs,
        )
        num_keys = max(0, key.shape[0] - needs.wanted(key.shape[0]).start)
        return of_query, of_candidates[:num_keys], of_candidates[num_keys:]

    backward = staticmethod(refuse_twice)


def _of_backward(problem: ContrastiveProblem) -> ContrastiveProblem:
    """Without what the products have taken in already, and without the scale, saved by itself."""
    return problem._replace(
        scale=None,  # type: ignore[arg-type]
        query_guide=None,
        candidate_guide=None,
    )
