"""The registered mean-pooling ops: forward, backward, fakes, autograd.

Shapes: B sentences, T tokens, C features. Each forward op gives pooled (B, C), unit (the unit
vectors in the accumulator dtype if normalize, else no row) and scale (B,) = 1 / (weight sum *
norm), 0 without tokens; the backward needs those and no hidden state. The backward is an op too:
differentiating it again raises.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from crossalign.operators.registration import refuse_second_derivative, register_op
from crossalign.pooling import torch_passes
from crossalign.precision import NORM_FLOOR, accumulator, norm_divisor


def _masked_mean_pool_fwd(
    hidden: Tensor, mask: Tensor, normalize: bool, use_triton: bool
) -> tuple[Tensor, Tensor, Tensor]:
    if use_triton:
        from crossalign.kernels.masked_mean_pool import masked_mean_pool_fwd

        return masked_mean_pool_fwd(hidden, mask, normalize)
    return _finish(*torch_passes.masked_sums(hidden, mask), normalize, hidden.dtype)


def _masked_mean_pool_bwd(
    grad_pooled: Tensor, mask: Tensor, unit: Tensor | None, scale: Tensor, use_triton: bool
) -> Tensor:
    if use_triton:
        from crossalign.kernels.masked_mean_pool_backward import masked_mean_pool_bwd

        return masked_mean_pool_bwd(grad_pooled, mask, unit, scale)
    rows = _gradient_rows(grad_pooled, unit, scale)
    return torch_passes.masked_gradient(rows, mask, grad_pooled.dtype)


def _mean_pool_varlen_fwd(
    hidden: Tensor, cu_seqlens: Tensor, normalize: bool, use_triton: bool
) -> tuple[Tensor, Tensor, Tensor]:
    if use_triton:
        from crossalign.kernels.masked_mean_pool import mean_pool_varlen_fwd

        return mean_pool_varlen_fwd(hidden, cu_seqlens, normalize)
    sums, lengths = torch_passes.varlen_sums(hidden, cu_seqlens)
    return _finish(sums, lengths, normalize, hidden.dtype)


def _mean_pool_varlen_bwd(
    grad_pooled: Tensor,
    cu_seqlens: Tensor,
    unit: Tensor | None,
    scale: Tensor,
    num_tokens: int,
    use_triton: bool,
) -> Tensor:
    if use_triton:
        from crossalign.kernels.masked_mean_pool_backward import mean_pool_varlen_bwd

        return mean_pool_varlen_bwd(grad_pooled, cu_seqlens, unit, scale, num_tokens)
    rows = _gradient_rows(grad_pooled, unit, scale)
    return torch_passes.varlen_gradient(rows, cu_seqlens, num_tokens, grad_pooled.dtype)


def _finish(
    sums: Tensor, weight_sum: Tensor, normalize: bool, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """(B, C) sums, (B,) -> pooled, unit, scale."""
    divisor = torch.where(weight_sum != 0, weight_sum, 1)
    mean = sums / divisor[:, None]
    scale = torch.where(weight_sum != 0, 1 / divisor, 0)
    if not normalize:
        return mean.to(dtype), mean.new_empty(0, mean.shape[1]), scale
    norm = torch.linalg.vector_norm(mean, dim=1)
    length = norm_divisor(norm)
    scale = torch.where(norm == 0, 0, scale / length)
    pooled = mean / length[:, None]
    # Below the floor the norm is a constant: nothing to project out of the gradient.
    unit = torch.where((norm < NORM_FLOOR)[:, None], 0, pooled)
    return pooled.to(dtype), unit, scale


def _gradient_rows(grad_pooled: Tensor, unit: Tensor | None, scale: Tensor) -> Tensor:
    """(B, C) gradient of each sentence's weighted sum, in the accumulator dtype."""
    grad = grad_pooled.to(scale.dtype)
    if unit is not None:
        grad = grad - unit * (grad * unit).sum(dim=1, keepdim=True)
    return grad * scale[:, None]


def _fwd_fake(hidden: Tensor, num_sentences: int, normalize: bool) -> tuple[Tensor, Tensor, Tensor]:
    width, dtype = hidden.shape[-1], accumulator(hidden.dtype)
    return (
        hidden.new_empty(num_sentences, width),
        hidden.new_empty(num_sentences if normalize else 0, width, dtype=dtype),
        hidden.new_empty(num_sentences, dtype=dtype),
    )


def _masked_mean_pool_fwd_fake(
    hidden: Tensor, mask: Tensor, normalize: bool, use_triton: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return _fwd_fake(hidden, hidden.shape[0], normalize)


def _mean_pool_varlen_fwd_fake(
    hidden: Tensor, cu_seqlens: Tensor, normalize: bool, use_triton: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return _fwd_fake(hidden, cu_seqlens.shape[0] - 1, normalize)


def _masked_mean_pool_bwd_fake(
    grad_pooled: Tensor, mask: Tensor, unit: Tensor | None, scale: Tensor, use_triton: bool
) -> Tensor:
    return grad_pooled.new_empty(*mask.shape, grad_pooled.shape[1])


def _mean_pool_varlen_bwd_fake(
    grad_pooled: Tensor,
    cu_seqlens: Tensor,
    unit: Tensor | None,
    scale: Tensor,
    num_tokens: int,
    use_triton: bool,
) -> Tensor:
    return grad_pooled.new_empty(num_tokens, grad_pooled.shape[1])


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    hidden, mask_or_cu_seqlens, normalize, use_triton = inputs
    _, unit, scale = output
    ctx.num_tokens, ctx.use_triton = hidden.shape[0], use_triton
    ctx.save_for_backward(mask_or_cu_seqlens, unit if normalize else None, scale)
    ctx.mark_non_differentiable(unit, scale)
    ctx.set_materialize_grads(False)


def _masked_mean_pool_gradient(ctx: Any, grad: Tensor | None, *_: None) -> tuple[Any, ...]:
    if grad is None:
        return None, None, None, None
    grad_hidden = _padded_gradient(grad, *ctx.saved_tensors, ctx.use_triton)
    return grad_hidden, None, None, None


def _mean_pool_varlen_gradient(ctx: Any, grad: Tensor | None, *_: None) -> tuple[Any, ...]:
    if grad is None:
        return None, None, None, None
    grad_hidden = _packed_gradient(grad, *ctx.saved_tensors, ctx.num_tokens, ctx.use_triton)
    return grad_hidden, None, None, None


class _Padded(NamedTuple):
    hidden: Tensor
    mask: Tensor
    normalize: bool
    use_triton: bool


class _Packed(NamedTuple):
    hidden: Tensor
    cu_seqlens: Tensor
    normalize: bool
    use_triton: bool


class _Pooled(NamedTuple):
    pooled: Tensor
    unit: Tensor
    scale: Tensor


class _PaddedGradient(NamedTuple):
    grad_pooled: Tensor
    mask: Tensor
    unit: Tensor | None
    scale: Tensor
    use_triton: bool


class _PackedGradient(NamedTuple):
    grad_pooled: Tensor
    cu_seqlens: Tensor
    unit: Tensor | None
    scale: Tensor
    num_tokens: int
    use_triton: bool


_refuse_twice = refuse_second_derivative("mean pooling", "the mean")
padded_mean = register_op(
    "masked_mean_pool_fwd",
    _masked_mean_pool_fwd,
    _masked_mean_pool_fwd_fake,
    arguments=[_Padded],
    results=_Pooled,
    backward=_masked_mean_pool_gradient,
    setup_context=_save_for_backward,
)
_padded_gradient = register_op(
    "masked_mean_pool_bwd",
    _masked_mean_pool_bwd,
    _masked_mean_pool_bwd_fake,
    arguments=[_PaddedGradient],
    results=None,
    backward=_refuse_twice,
)
packed_mean = register_op(
    "mean_pool_varlen_fwd",
    _mean_pool_varlen_fwd,
    _mean_pool_varlen_fwd_fake,
    arguments=[_Packed],
    results=_Pooled,
    backward=_mean_pool_varlen_gradient,
    setup_context=_save_for_backward,
)
_packed_gradient = register_op(
    "mean_pool_varlen_bwd",
    _mean_pool_varlen_bwd,
    _mean_pool_varlen_bwd_fake,
    arguments=[_PackedGradient],
    results=None,
    backward=_refuse_twice,
)
