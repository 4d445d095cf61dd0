"""The registered contrastive ops: forward sums and their backward, fakes, autograd.

`crossalign::contrastive_fwd` maps embeddings to a few numbers per row and column (see
contrastive_problem); the loss on top of them is ordinary autograd on vectors, so any weighting,
reduction or combination across devices differentiates by itself. `crossalign::contrastive_bwd` is
an op too: differentiating it again raises.

Where nobody records or replaces ops (torch.compile, fake tensors) the same functions run without
the dispatcher, which costs the host more than all their launches.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from crossalign.contrastive.chunked import torch_passes
from crossalign.contrastive.chunked.chunk import empty_kept
from crossalign.contrastive.problem import (
    NON_DIFFERENTIABLE_SUMS,
    PROBLEM_TENSORS,
    ContrastiveGrads,
    ContrastiveProblem,
    ContrastiveSums,
    GradientNeeds,
    empty_sums,
)
from crossalign.contrastive.sides import (
    NeededSides,
    SideGradients,
    Sides,
    joined,
    needs_of,
    separated,
)
from crossalign.contrastive.terms import pair_terms
from crossalign.operators.registration import refuse_second_derivative, register_op
from crossalign.operators.transforms import ops_are_watched, transforms_are_active
from crossalign.precision import without_autocast

_NUM_PROBLEM = len(ContrastiveProblem._fields)
_NUM_TENSORS = len(PROBLEM_TENSORS)
_NUM_SUMS = len(ContrastiveSums._fields)


def contrastive_sums(
    query: Tensor,
    key: Tensor,
    problem: ContrastiveProblem,
    *,
    negatives: Tensor | None = None,
    known_positive_logit: Tensor | None = None,
    with_stats: bool = False,
    use_triton: bool = False,
) -> ContrastiveSums:
    """Differentiable in query, key, negatives and problem.scale; inputs are taken as checked.

    The candidates are key, then negatives: two arguments, so that a frozen one costs nothing.
    """
    is_seen = ops_are_watched() or transforms_are_active()
    forward = _forward_op if is_seen else _Undispatched.apply
    outputs = forward(query, key, negatives, *problem, known_positive_logit, with_stats, use_triton)
    return ContrastiveSums(*outputs)


def contrastive_gradients(
    query: Tensor,
    candidates: Tensor,
    problem: ContrastiveProblem,
    sums: ContrastiveSums,
    grads: ContrastiveGrads,
    needs: GradientNeeds,
    *,
    use_triton: bool = False,
    kept: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Of query, of the wanted candidates, and of scale; what is not needed has no elements.

    kept: what kept_for_backward gave, filled by the forward pass.
    """
    with without_autocast(query.device.type):
        if use_triton and _may_launch(query, candidates):
            from crossalign.kernels.contrastive_backward import contrastive_bwd

            return contrastive_bwd(query, candidates, problem, sums, grads, needs, kept)
        of_query, of_candidates, of_scale = torch_passes.contrastive_bwd(
            query, candidates, problem, sums, grads, needs, kept
        )
    return of_query, of_candidates, of_scale if needs.scale else of_scale.new_empty(0)


def pair_losses(sums: ContrastiveSums, symmetric: bool, *, use_triton: bool = False) -> Tensor:
    """pair_terms, which Triton does in one launch each way."""
    if not use_triton or ops_are_watched() or transforms_are_active():
        return pair_terms(sums, symmetric)
    losses: Tensor = _PairTerms.apply(*sums)  # type: ignore[no-untyped-call]
    return losses


class _PairTerms(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *sums: Tensor) -> Tensor:
        from crossalign.kernels.pair_terms import pair_terms_fwd

        ctx.save_for_backward(*sums)
        return pair_terms_fwd(ContrastiveSums(*sums))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_terms: Tensor) -> tuple[Tensor | None, ...]:
        from crossalign.kernels.pair_terms import pair_terms_bwd

        grads = pair_terms_bwd(grad_terms, ContrastiveSums(*ctx.saved_tensors))._asdict()
        return tuple(grads.get(name) for name in ContrastiveSums._fields)


def _may_launch(query: Tensor, candidates: Tensor) -> bool:
    """The kernels want a row and a column; without one the PyTorch passes cost nothing."""
    return query.shape[0] > 0 and candidates.shape[0] > 0


def _contrastive_fwd(
    query: Tensor,
    key: Tensor,
    negatives: Tensor | None,
    *arguments: Any,
    kept: Tensor | None = None,
) -> tuple[Tensor, ...]:
    problem = ContrastiveProblem(*arguments[:_NUM_PROBLEM])
    known_positive_logit, with_stats, use_triton = arguments[_NUM_PROBLEM:]
    candidates = joined(key, negatives)
    with without_autocast(query.device.type):
        if use_triton and _may_launch(query, candidates):
            from crossalign.kernels.contrastive_forward import contrastive_fwd

            return contrastive_fwd(
                query, candidates, problem, known_positive_logit, with_stats, kept
            )
        return torch_passes.contrastive_fwd(
            query, candidates, problem, known_positive_logit, with_stats, kept
        )


def _gradients(
    query: Tensor,
    key: Tensor,
    negatives: Tensor | None,
    *arguments: Any,
    kept: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of query, key, negatives and scale; what is not needed has no elements."""
    problem = ContrastiveProblem(*arguments[:_NUM_PROBLEM])
    sums = ContrastiveSums(*arguments[_NUM_PROBLEM : _NUM_PROBLEM + _NUM_SUMS])
    grads = ContrastiveGrads(*arguments[_NUM_PROBLEM + _NUM_SUMS : -5])
    needs = needs_of(arguments[-5:-1], key, negatives)
    of_query, of_candidates, of_scale = contrastive_gradients(
        query,
        joined(key, negatives),
        problem,
        sums,
        grads,
        needs,
        use_triton=arguments[-1],
        kept=kept,
    )
    num_keys = key.shape[0] if arguments[-4] else 0
    return of_query, of_candidates[:num_keys], of_candidates[num_keys:], of_scale


def _contrastive_bwd(*arguments: Any) -> tuple[Tensor, ...]:
    """The same as an op, whose outputs are contiguous and share no storage."""
    of_query, of_key, of_negatives, of_scale = _gradients(*arguments)
    return of_query.contiguous(), *separated(of_key, of_negatives), of_scale


def _contrastive_fwd_fake(
    query: Tensor, key: Tensor, negatives: Tensor | None, *arguments: Any
) -> tuple[Tensor, ...]:
    problem = ContrastiveProblem(*arguments[:_NUM_PROBLEM])
    with_stats = arguments[_NUM_PROBLEM + 1]
    num_candidates = key.shape[0] + (0 if negatives is None else negatives.shape[0])
    return empty_sums(query, problem, num_candidates, with_stats)


def _contrastive_bwd_fake(
    query: Tensor, key: Tensor, negatives: Tensor | None, scale: Tensor, *arguments: Any
) -> tuple[Tensor, ...]:
    need_query, need_key, need_negatives, need_scale = arguments[-5:-1]
    sides = ((query, need_query), (key, need_key), (negatives, need_negatives))
    of_sides = [
        query.new_empty(x.shape[0] if is_needed and x is not None else 0, query.shape[1])
        for x, is_needed in sides
    ]
    return (*of_sides, scale.new_empty(scale.shape if need_scale else (0,)))


def kept_for_backward(
    query: Tensor, key: Tensor, negatives: Tensor | None, *arguments: Any
) -> Tensor | None:
    """A workspace for the exponentials, where keeping them saves the backward a product."""
    num_candidates = key.shape[0] + (0 if negatives is None else negatives.shape[0])
    problem = ContrastiveProblem(*arguments[:_NUM_PROBLEM])
    if query.shape[0] == 0 or num_candidates == 0:
        return None
    if not arguments[-1]:
        return empty_kept(query, num_candidates, problem)
    from crossalign.kernels import kept_exponentials

    return kept_exponentials.kept_for_backward(query.shape[0], num_candidates, query, problem)


def _save_for_backward(
    ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...], kept: Tensor | None = None
) -> None:
    query, key, negatives, *arguments = inputs
    problem = ContrastiveProblem(*arguments[:_NUM_PROBLEM])
    sums = ContrastiveSums(*output)
    no_tensors: dict[str, Any] = dict.fromkeys(PROBLEM_TENSORS)
    ctx.options = problem._replace(**no_tensors)
    ctx.use_triton = arguments[-1]
    ctx.save_for_backward(query, key, negatives, kept, *problem[:_NUM_TENSORS], *output)
    ctx.mark_non_differentiable(*(getattr(sums, name) for name in NON_DIFFERENTIABLE_SUMS))
    ctx.set_materialize_grads(False)


def upstream_gradients(
    upstream: Sequence[Tensor | None], sums: ContrastiveSums
) -> ContrastiveGrads:
    """The gradients that autograd gives for the fields of sums; None stands for zeros."""
    by_name = dict(zip(ContrastiveSums._fields, upstream, strict=True))
    grads = []
    for name in ContrastiveGrads._fields:
        grad, like = by_name[name], getattr(sums, name)
        grads.append(torch.zeros_like(like) if grad is None else grad.contiguous())
    return ContrastiveGrads(*grads)


def _backward(ctx: Any, *upstream: Tensor | None) -> tuple[Any, ...]:
    query, key, negatives, kept, *saved = ctx.saved_tensors
    tensors, outputs = saved[:_NUM_TENSORS], saved[_NUM_TENSORS:]
    problem = ctx.options._replace(**dict(zip(PROBLEM_TENSORS, tensors, strict=True)))
    sums = ContrastiveSums(*outputs)
    grads = upstream_gradients(upstream, sums)
    # A second differentiation has to go through the op, whose formula refuses it.
    is_seen = torch.is_grad_enabled() or ops_are_watched() or transforms_are_active()
    needs_grad = tuple(ctx.needs_input_grad[:4])
    arguments = (query, key, negatives, *problem, *sums, *grads, *needs_grad, ctx.use_triton)
    gradients = _backward_op(*arguments) if is_seen else _gradients(*arguments, kept=kept)
    wanted = zip(gradients, needs_grad, strict=True)
    no_gradient = (None,) * (_NUM_PROBLEM - 1 + 3)
    return (*(grad if is_needed else None for grad, is_needed in wanted), *no_gradient)


class _Undispatched(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, ...]:
        kept = kept_for_backward(*arguments) if any(ctx.needs_input_grad) else None
        output = _contrastive_fwd(*arguments, kept=kept)
        _save_for_backward(ctx, arguments, output, kept)
        return output

    backward = staticmethod(_backward)


class _ForwardChoices(NamedTuple):
    known_positive_logit: Tensor | None
    with_stats: bool
    use_triton: bool


class _Backend(NamedTuple):
    use_triton: bool


refuse_twice = refuse_second_derivative("contrastive loss", "the loss")
_forward_op = register_op(
    "contrastive_fwd",
    _contrastive_fwd,
    _contrastive_fwd_fake,
    arguments=(Sides, ContrastiveProblem, _ForwardChoices),
    results=ContrastiveSums,
    backward=_backward,
    setup_context=_save_for_backward,
)
_backward_op = register_op(
    "contrastive_bwd",
    _contrastive_bwd,
    _contrastive_bwd_fake,
    arguments=(
        *(Sides, ContrastiveProblem, ContrastiveSums, ("grad_", ContrastiveGrads)),
        *(NeededSides, _Backend),
    ),
    results=SideGradients,
    backward=refuse_twice,
)
