"""Masked mean pooling, padded and packed: the backward pass.

    grad_hidden[b, t] = m[b, t] * scale[b] * row[b]
    row[b] = grad[b], or with normalize  grad[b] - unit[b] * <grad[b], unit[b]>

scale (B,) and unit (B, C) come from the forward pass (masked_mean_pool), whose shape legend holds
here. Reads no hidden state, only B*C; writes every element of grad_hidden once, the zeros of
masked positions included. Arithmetic is float32 (float64 for float64), rounded once.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from crossalign.kernels.launch import (
    accumulator_dtype,
    compute_capability,
    device_guard,
)
from crossalign.kernels.masked_mean_pool import (
    ROW_WARPS,
    row_block,
    tile_for,
    token_range,
    token_weights,
)
from crossalign.precision import accumulator

TOKENS_PER_PROGRAM = 128


@triton.jit
def _mean_pool_bwd_rows_kernel(
    grad_pooled_ptr,  # (B, C)
    unit_ptr,  # (B, C)
    rows_ptr,  # (B, C) in the accumulator dtype
    width,
    BLOCK_C: tl.constexpr, ACC_DTYPE: tl.constexpr,
):  # fmt: skip
    """rows[b] = grad_pooled[b] - unit[b] * <grad_pooled[b], unit[b]>"""
    start = tl.program_id(0).to(tl.int64) * width
    products = tl.zeros([BLOCK_C], ACC_DTYPE)
    for c in range(0, width, BLOCK_C):
        offs_c = c + tl.arange(0, BLOCK_C)
        in_range_c = offs_c < width
        grad = tl.load(grad_pooled_ptr + start + offs_c, mask=in_range_c, other=0.0).to(ACC_DTYPE)
        products += grad * tl.load(unit_ptr + start + offs_c, mask=in_range_c, other=0.0)
    along_unit = tl.sum(products, axis=0)
    for c in range(0, width, BLOCK_C):
        offs_c = c + tl.arange(0, BLOCK_C)
        in_range_c = offs_c < width
        grad = tl.load(grad_pooled_ptr + start + offs_c, mask=in_range_c, other=0.0).to(ACC_DTYPE)
        unit = tl.load(unit_ptr + start + offs_c, mask=in_range_c, other=0.0)
        tl.store(rows_ptr + start + offs_c, grad - unit * along_unit, mask=in_range_c)


@triton.jit(do_not_specialize=["num_sentences", "num_tokens", "num_splits", "stride_mb"])
def _mean_pool_bwd_kernel(
    rows_ptr,  # (B, C)
    scale_ptr,  # (B,)
    mask_ptr,  # (B, T), or None for packed tokens
    cu_seqlens_ptr,  # (B + 1,), or None for padded ones
    grad_hidden_ptr,  # (B, T, C) or (total, C), contiguous
    num_sentences, num_tokens, width, num_splits,
    stride_mb, stride_mt,
    HAS_MASK: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr, ACC_DTYPE: tl.constexpr,
):  # fmt: skip
    """grad_hidden[b, t] = m[b, t] * scale[b] * rows[b] in every S-th block of tokens."""
    num_blocks_c = tl.cdiv(width, BLOCK_C)
    block_c = tl.program_id(0) % num_blocks_c
    split = tl.program_id(0) // num_blocks_c % num_splits
    b = (tl.program_id(0) // num_blocks_c // num_splits).to(tl.int64)
    first, length = token_range(cu_seqlens_ptr, b, num_tokens, HAS_MASK)
    if HAS_MASK:
        mask_ptr += b * stride_mb
        first += b * num_tokens
        num_written = length
    else:
        # Tokens after the last sentence belong to none, but their gradient is written too: zero.
        num_written = tl.where(b == num_sentences - 1, num_tokens - first, length).to(tl.int32)
    offs_c = block_c * BLOCK_C + tl.arange(0, BLOCK_C)
    in_range_c = offs_c < width
    row = tl.load(rows_ptr + b * width + offs_c, mask=in_range_c, other=0.0).to(ACC_DTYPE)
    row = row * tl.load(scale_ptr + b)  # [BLOCK_C]

    for t in range(split * BLOCK_T, num_written, num_splits * BLOCK_T):
        offs_t = t + tl.arange(0, BLOCK_T)
        weights = token_weights(mask_ptr, offs_t, length, stride_mt, HAS_MASK, ACC_DTYPE)[:, None]
        grad_tile = tl.where(weights != 0, weights * row[None, :], 0.0)  # [BLOCK_T, BLOCK_C]
        offs = (first + offs_t).to(tl.int64)[:, None] * width + offs_c[None, :]
        is_written = (offs_t < num_written)[:, None] & in_range_c[None, :]
        tl.store(
            grad_hidden_ptr + offs,
            grad_tile.to(grad_hidden_ptr.dtype.element_ty),
            mask=is_written,
        )


def masked_mean_pool_bwd(
    grad_pooled: Tensor, mask: Tensor, unit: Tensor | None, scale: Tensor
) -> Tensor:
    """(B, C), (B, T), (B, C) or None, (B,) -> (B, T, C), dtype of grad_pooled."""
    grad_hidden = grad_pooled.new_empty(*mask.shape, grad_pooled.shape[1])
    return _bwd(grad_pooled, mask, None, unit, scale, grad_hidden, mask.shape[1])


def mean_pool_varlen_bwd(
    grad_pooled: Tensor, cu_seqlens: Tensor, unit: Tensor | None, scale: Tensor, num_tokens: int
) -> Tensor:
    """(B, C), (B + 1,), (B, C) or None, (B,) -> (total, C), dtype of grad_pooled."""
    grad_hidden = grad_pooled.new_empty(num_tokens, grad_pooled.shape[1])
    mean_length = triton.cdiv(num_tokens, max(grad_pooled.shape[0], 1))
    return _bwd(grad_pooled, None, cu_seqlens.contiguous(), unit, scale, grad_hidden, mean_length)


def _bwd(
    grad_pooled: Tensor,
    mask: Tensor | None,
    cu_seqlens: Tensor | None,
    unit: Tensor | None,
    scale: Tensor,
    grad_hidden: Tensor,
    tokens_per_sentence: int,
) -> Tensor:
    """Fills grad_hidden; scale and unit are contiguous, as the forward made them."""
    if grad_hidden.numel() == 0:
        return grad_hidden
    num_sentences, width = grad_pooled.shape
    rows = grad_pooled.contiguous()
    acc_dtype = accumulator_dtype(grad_pooled.dtype)
    tile = tile_for(width, grad_pooled.dtype, compute_capability(grad_pooled))
    num_splits = triton.cdiv(tokens_per_sentence, TOKENS_PER_PROGRAM)
    grid = (num_sentences * num_splits * triton.cdiv(width, tile.block_c),)
    stride_mb, stride_mt = mask.stride() if mask is not None else (0, 0)
    with device_guard(grad_pooled):
        if unit is not None:
            grad, rows = rows, torch.empty_like(rows, dtype=accumulator(rows.dtype))
            _mean_pool_bwd_rows_kernel[(num_sentences,)](
                grad_pooled_ptr=grad, unit_ptr=unit, rows_ptr=rows, width=width,
                BLOCK_C=row_block(width), ACC_DTYPE=acc_dtype, num_warps=ROW_WARPS,
            )  # fmt: skip
        _mean_pool_bwd_kernel[grid](
            rows_ptr=rows, scale_ptr=scale, mask_ptr=mask, cu_seqlens_ptr=cu_seqlens,
            grad_hidden_ptr=grad_hidden,
            num_sentences=num_sentences, num_tokens=grad_hidden.shape[-2],
            width=width, num_splits=num_splits,
            stride_mb=stride_mb, stride_mt=stride_mt, HAS_MASK=mask is not None,
            BLOCK_T=tile.block_t, BLOCK_C=tile.block_c, ACC_DTYPE=acc_dtype,
            num_warps=tile.num_warps,
        )  # fmt: skip
    return grad_hidden
