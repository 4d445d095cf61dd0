"""The registered ops of the pairwise sigmoid loss: forward, backward, fakes, autograd.

`crossalign::sigmoid_fwd` maps embeddings to one term per query; `crossalign::sigmoid_bwd` is an op
too, so differentiating it again raises.
"""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import Tensor

from crossalign.contrastive.problem import GradientNeeds
from crossalign.contrastive.sigmoid import torch_passes
from crossalign.contrastive.sigmoid.problem import (
    SigmoidProblem,
    SigmoidSums,
    empty_gradients,
)
from crossalign.precision import accumulator, without_autocast

_PROBLEM_SCHEMA = (
    "Tensor scale, Tensor bias, Tensor? query_ids, Tensor? key_ids, SymInt label_offset, "
    "bool normalize"
)
_NUM_PROBLEM = len(SigmoidProblem._fields)

torch.library.define(
    "crossalign::sigmoid_fwd",
    f"(Tensor query, Tensor key, {_PROBLEM_SCHEMA}, bool use_triton) -> (Tensor, Tensor, Tensor)",
)
torch.library.define(
    "crossalign::sigmoid_bwd",
    f"(Tensor query, Tensor key, {_PROBLEM_SCHEMA}, Tensor query_inverse_norm, "
    "Tensor key_inverse_norm, Tensor grad_terms, bool need_query_grad, bool need_key_grad, "
    "bool need_scale_grad, bool use_triton) -> (Tensor, Tensor, Tensor, Tensor)",
)


def sigmoid_sums(
    query: Tensor, key: Tensor, problem: SigmoidProblem, *, use_triton: bool = False
) -> SigmoidSums:
    """Differentiable in query, key, problem.scale and problem.bias; inputs are taken as checked."""
    outputs = torch.ops.crossalign.sigmoid_fwd(query, key, *problem, use_triton)
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
    gradients: tuple[Tensor, Tensor, Tensor, Tensor] = torch.ops.crossalign.sigmoid_bwd(
        query, key, *problem, *norms, grad_terms, *needs[:3], use_triton
    )
    return gradients


def _may_launch(query: Tensor, key: Tensor) -> bool:
    """The kernels want a row and a column; without one the PyTorch passes cost nothing."""
    return query.shape[0] > 0 and key.shape[0] > 0


@torch.library.impl("crossalign::sigmoid_fwd", "CompositeExplicitAutograd")
def _sigmoid_fwd(query: Tensor, key: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    problem, use_triton = SigmoidProblem(*arguments[:_NUM_PROBLEM]), arguments[-1]
    # Autocast reaches into composite ops and would turn float32 products into bfloat16 ones.
    with without_autocast(query.device.type):
        if use_triton and _may_launch(query, key):
            from crossalign.kernels.sigmoid_forward import sigmoid_fwd

            return sigmoid_fwd(query, key, problem)
        return torch_passes.sigmoid_fwd(query, key, problem)


@torch.library.impl("crossalign::sigmoid_bwd", "CompositeExplicitAutograd")
def _sigmoid_bwd(query: Tensor, key: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    problem = SigmoidProblem(*arguments[:_NUM_PROBLEM])
    *norms, grad_terms = arguments[_NUM_PROBLEM : _NUM_PROBLEM + 3]
    *need_flags, use_triton = arguments[_NUM_PROBLEM + 3 :]
    needs = GradientNeeds(*need_flags)
    with without_autocast(query.device.type):
        if use_triton and _may_launch(query, key):
            from crossalign.kernels.sigmoid_backward import sigmoid_bwd

            sums = SigmoidSums(grad_terms, *norms)
            return sigmoid_bwd(query, key, problem, sums, grad_terms, needs)
        gradients = torch_passes.sigmoid_bwd(query, key, problem, grad_terms, needs)
    return tuple(gradient.contiguous() for gradient in gradients)


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


torch.library.register_fake("crossalign::sigmoid_fwd", _sigmoid_fwd_fake)
torch.library.register_fake("crossalign::sigmoid_bwd", _sigmoid_bwd_fake)


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


def _refuse_second_derivative(ctx: Any, *grads: Tensor) -> NoReturn:
    raise RuntimeError(
        "crossalign sigmoid loss cannot be differentiated twice; "
        "for second derivatives write the loss in plain PyTorch"
    )


torch.library.register_autograd(
    "crossalign::sigmoid_fwd", _backward, setup_context=_save_for_backward
)
torch.library.register_autograd("crossalign::sigmoid_bwd", _refuse_second_derivative)
