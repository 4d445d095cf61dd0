"""The registered ops of the pairwise sigmoid loss: forward, backward, fakes, autograd.

`crossalign::sigmoid_fwd` maps embeddings to one term per query; `crossalign::sigmoid_bwd` is an op
too, so differentiating it again raises.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from crossalign.contrastive.problem import GradientNeeds
from crossalign.contrastive.sigmoid import torch_passes
from crossalign.contrastive.sigmoid.problem import (
    SigmoidProblem,
    SigmoidSums,
    empty_gradients,
)
from crossalign.operators.registration import refuse_second_derivative, register_op
from crossalign.precision import accumulator, without_autocast

_NUM_PROBLEM = len(SigmoidProblem._fields)


def sigmoid_sums(
    query: Tensor, key: Tensor, problem: SigmoidProblem, *, use_triton: bool = False
) -> SigmoidSums:
    """Differentiable in query, key, problem.scale and problem.bias; inputs are taken as checked."""
    outputs = _forward_op(query, key, *problem, use_triton)
    return SigmoidSums(*outputs)


def sigmoid_gradients(
    query: Tensor,
    key: Tensor,
    problem: SigmoidProblem,
    sums: SigmoidSums,
    grad_terms: Tensor,
    needs: GradientNeeds,
    *,
    use_triton: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of query, key, scale and bias; what is not needed has no rows, or is 0."""
    norms = (sums.query_inverse_norm, sums.key_inverse_norm)
    if needs.is_partial:  # of a batch spread over several ranks, whose backward is no op
        return _gradients(query, key, problem, norms, grad_terms, needs, use_triton)
    gradients: tuple[Tensor, Tensor, Tensor, Tensor] = _backward_op(
        query, key, *problem, *norms, grad_terms, *needs[:3], use_triton
    )
    return gradients


def _may_launch(query: Tensor, key: Tensor) -> bool:
    """The kernels want a row and a column; without one the PyTorch passes cost nothing."""
    return query.shape[0] > 0 and key.shape[0] > 0


def _sigmoid_fwd(query: Tensor, key: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    problem, use_triton = SigmoidProblem(*arguments[:_NUM_PROBLEM]), arguments[-1]
    # Autocast reaches into composite ops and would turn float32 products into bfloat16 ones.
    with without_autocast(query.device.type):
        if use_triton and _may_launch(query, key):
            from crossalign.kernels.sigmoid_forward import sigmoid_fwd

            return sigmoid_fwd(query, key, problem)
        return torch_passes.sigmoid_fwd(query, key, problem)


def _sigmoid_bwd(query: Tensor, key: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    problem = SigmoidProblem(*arguments[:_NUM_PROBLEM])
    *norms, grad_terms = arguments[_NUM_PROBLEM : _NUM_PROBLEM + 3]
    *need_flags, use_triton = arguments[_NUM_PROBLEM + 3 :]
    needs = GradientNeeds(*need_flags)
    gradients = _gradients(query, key, problem, norms, grad_terms, needs, use_triton)
    return tuple(gradient.contiguous() for gradient in gradients)


def _gradients(
    query: Tensor,
    key: Tensor,
    problem: SigmoidProblem,
    norms: Sequence[Tensor],
    grad_terms: Tensor,
    needs: GradientNeeds,
    use_triton: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    with without_autocast(query.device.type):
        if use_triton and _may_launch(query, key):
            from crossalign.kernels.sigmoid_backward import sigmoid_bwd

            sums = SigmoidSums(grad_terms, *norms)
            return sigmoid_bwd(query, key, problem, sums, grad_terms, needs)
        return torch_passes.sigmoid_bwd(query, key, problem, grad_terms, needs)


def _sigmoid_fwd_fake(query: Tensor, key: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    problem, dtype = SigmoidProblem(*arguments[:_NUM_PROBLEM]), accumulator(query.dtype)
    num_norms = (query.shape[0], key.shape[0]) if problem.normalize else (0, 0)
    sizes = (query.shape[0], *num_norms)
    return tuple(query.new_empty(size, dtype=dtype) for size in sizes)


def _sigmoid_bwd_fake(
    query: Tensor, key: Tensor, scale: Tensor, bias: Tensor, *arguments: Any
) -> tuple[Tensor, ...]:
    needs = GradientNeeds(*arguments[-4:-1])
    grad_query, grad_key = empty_gradients(query, key, needs)
    return grad_query, grad_key, scale.new_empty(()), bias.new_empty(())


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    query, key, *problem, use_triton = inputs
    none: Any = None
    ctx.options = SigmoidProblem(none, none, none, none, *problem[4:])
    ctx.use_triton = use_triton
    ctx.save_for_backward(query, key, *problem[:4], *output)
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad_terms: Tensor | None, *norms: None) -> tuple[Any, ...]:
    if grad_terms is None:
        return (None,) * (2 + _NUM_PROBLEM + 1)
    query, key, scale, bias, query_ids, key_ids, *sums = ctx.saved_tensors
    problem = ctx.options._replace(scale=scale, bias=bias, query_ids=query_ids, key_ids=key_ids)
    need_query, need_key, need_scale, need_bias = ctx.needs_input_grad[:4]
    needs = GradientNeeds(need_query, need_key, need_scale or need_bias)
    gradients = sigmoid_gradients(
        query,
        key,
        problem,
        SigmoidSums(*sums),
        grad_terms.contiguous(),
        needs,
        use_triton=ctx.use_triton,
    )
    wanted = zip(gradients, ctx.needs_input_grad, strict=False)
    return *(gradient if need else None for gradient, need in wanted), *(None,) * 5


class _Sides(NamedTuple):
    query: Tensor
    key: Tensor


class _Backend(NamedTuple):
    use_triton: bool


class _BackwardChoices(NamedTuple):
    query_inverse_norm: Tensor
    key_inverse_norm: Tensor
    grad_terms: Tensor
    need_query_grad: bool
    need_key_grad: bool
    need_scale_grad: bool
    use_triton: bool


class _Gradients(NamedTuple):
    query: Tensor
    key: Tensor
    scale: Tensor
    bias: Tensor


refuse_twice = refuse_second_derivative("sigmoid loss", "the loss")
_forward_op = register_op(
    "sigmoid_fwd",
    _sigmoid_fwd,
    _sigmoid_fwd_fake,
    arguments=(_Sides, SigmoidProblem, _Backend),
    results=SigmoidSums,
    backward=_backward,
    setup_context=_save_for_backward,
)
_backward_op = register_op(
    "sigmoid_bwd",
    _sigmoid_bwd,
    _sigmoid_bwd_fake,
    arguments=(_Sides, SigmoidProblem, _BackwardChoices),
    results=_Gradients,
    backward=refuse_twice,
)
