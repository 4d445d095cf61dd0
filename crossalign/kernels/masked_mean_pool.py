"""Masked mean pooling, padded and packed: the forward pass, with the scaling to unit length.

    pooled[b] = sum_t m[b, t] * hidden[b, t] / sum_t m[b, t]

B sentences, T tokens, C features, S token splits. Padded: hidden (B, T, C) with a mask (B, T).
Packed: hidden (total, C) with cu_seqlens (B + 1,), every token of weight 1. With normalize,
pooled[b] is divided by max(||pooled[b]||, 1e-12).

Sums are float32 (float64 for float64). Reads each unmasked token once and writes B*C: the mask is
the predicate of the load, so no masked position is read, and a block of tokens without weight costs
a look at its mask. Long sentences, and normalize, go through a buffer of S*B*C partial sums that a
second kernel adds in order. No atomics: each sum has one owner and one order.

The backward pass (masked_mean_pool_backward) needs two things besides: scale[b] =
1 / (weight sum * norm), 0 without tokens, and the unit vector in the accumulator dtype.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from crossalign.kernels.launch import (
    accumulator_dtype,
    compute_capability,
    device_guard,
)
from crossalign.precision import NORM_FLOOR, accumulator


class Tile(NamedTuple):
    """A row of the tile is one warp's 16-byte loads; each thread has eight of them in flight."""

    block_t: int  # 32: one warp sees whether any token has a weight, without a barrier
    block_c: int
    num_warps: int


# First compute capability served -> bytes per element -> tile.
TILES = {80: {2: Tile(32, 256, 4), 4: Tile(32, 128, 4), 8: Tile(32, 64, 4)}}
TOKENS_PER_PROGRAM = 512  # longer sentences are split, so that few of them fill a GPU
MAX_SPLITS = 16  # bounds the buffer of partial sums and the walk over it
MAX_ROW_BLOCK = 4096
ROW_WARPS = 8
_FLOOR = tl.constexpr(NORM_FLOOR)


@triton.jit
def token_range(cu_seqlens_ptr, b, num_tokens, HAS_MASK: tl.constexpr):
    """First token of sentence b and how many it has; clamped, so no value leads outside hidden."""
    if HAS_MASK:
        return 0, num_tokens
    else:
        first = tl.maximum(tl.load(cu_seqlens_ptr + b).to(tl.int64), 0)
        last = tl.minimum(tl.load(cu_seqlens_ptr + b + 1).to(tl.int64), num_tokens)
        return first, (last - first).to(tl.int32)


@triton.jit
def token_weights(
    mask_ptr, offs_t, length, stride_mt, HAS_MASK: tl.constexpr, ACC_DTYPE: tl.constexpr
):
    """Weight of each token: its mask, or 1 for a packed token; 0 from length on.  # [BLOCK_T]"""
    in_range_t = offs_t < length
    if HAS_MASK:
        weights = tl.load(mask_ptr + offs_t.to(tl.int64) * stride_mt, mask=in_range_t, other=0)
        return weights.to(ACC_DTYPE)
    else:
        return in_range_t.to(ACC_DTYPE)


@triton.jit(do_not_specialize=["num_tokens", "num_splits", "stride_mb"])
def _mean_pool_fwd_kernel(
    hidden_ptr,  # (B, T, C) or (total, C)
    mask_ptr,  # (B, T), or None for packed tokens
    cu_seqlens_ptr,  # (B + 1,), or None for padded ones
    sums_ptr,  # (B, S, C): partial sums; the mean itself if IS_WHOLE
    weights_ptr,  # (B, S): partial weight sums; their inverse if IS_WHOLE
    num_tokens, width, num_splits,
    stride_hb, stride_ht, stride_hc, stride_mb, stride_mt,
    HAS_MASK: tl.constexpr, IS_WHOLE: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_C: tl.constexpr, ACC_DTYPE: tl.constexpr,
):  # fmt: skip
    """sums[b, s] = sum of m[b, t] * hidden[b, t] over every S-th block of tokens, from block s."""
    num_blocks_c = tl.cdiv(width, BLOCK_C)
    block_c = tl.program_id(0) % num_blocks_c
    row = tl.program_id(0) // num_blocks_c  # b * S + s
    split = row % num_splits
    b = (row // num_splits).to(tl.int64)
    first, length = token_range(cu_seqlens_ptr, b, num_tokens, HAS_MASK)
    hidden_ptr += first * stride_ht
    if HAS_MASK:
        hidden_ptr += b * stride_hb
        mask_ptr += b * stride_mb
    offs_c = block_c * BLOCK_C + tl.arange(0, BLOCK_C).to(tl.int64)
    in_range_c = offs_c < width

    acc = tl.zeros([BLOCK_T, BLOCK_C], ACC_DTYPE)
    weight_acc = tl.zeros([BLOCK_T], ACC_DTYPE)
    for t in range(split * BLOCK_T, length, num_splits * BLOCK_T):
        offs_t = t + tl.arange(0, BLOCK_T)
        weights = token_weights(mask_ptr, offs_t, length, stride_mt, HAS_MASK, ACC_DTYPE)
        if tl.max((weights != 0).to(tl.int32), axis=0) != 0:
            offs = offs_t.to(tl.int64)[:, None] * stride_ht + offs_c[None, :] * stride_hc
            is_read = (weights != 0)[:, None] & in_range_c[None, :]
            hidden_tile = tl.load(hidden_ptr + offs, mask=is_read, other=0.0)  # [BLOCK_T, BLOCK_C]
            acc += weights[:, None] * hidden_tile.to(ACC_DTYPE)
            weight_acc += weights

    sums = tl.sum(acc, axis=0)  # [BLOCK_C]
    weight_sum = tl.sum(weight_acc, axis=0)
    if IS_WHOLE:
        divisor = tl.where(weight_sum != 0, weight_sum, 1.0)
        sums = sums / divisor
        weight_sum = tl.where(weight_sum != 0, 1.0 / divisor, 0.0)
    sums_ptr += row.to(tl.int64) * width
    tl.store(sums_ptr + offs_c, sums.to(sums_ptr.dtype.element_ty), mask=in_range_c)
    tl.store(weights_ptr + row, weight_sum, mask=block_c == 0)


@triton.jit
def _mean(sums_ptr, b, divisor, offs_c, width, num_splits, ACC_DTYPE: tl.constexpr):
    """The partial sums of sentence b, added in order and divided.  # [BLOCK_C]"""
    mean = tl.zeros(offs_c.shape, ACC_DTYPE)
    for split in range(num_splits):
        offs = (b * num_splits + split) * width + offs_c
        mean += tl.load(sums_ptr + offs, mask=offs_c < width, other=0.0)
    return mean / divisor


@triton.jit(do_not_specialize=["num_splits"])
def _mean_pool_finish_kernel(
    sums_ptr,  # (B, S, C)
    weights_ptr,  # (B, S)
    pooled_ptr,  # (B, C)
    unit_ptr,  # (B, C) in the accumulator dtype, or None
    scale_ptr,  # (B,)
    width, num_splits,
    NORMALIZE: tl.constexpr, BLOCK_C: tl.constexpr, ACC_DTYPE: tl.constexpr,
):  # fmt: skip
    """pooled[b] = sum_s sums[b, s] / sum_s weights[b, s], to unit length if NORMALIZE."""
    b = tl.program_id(0).to(tl.int64)
    weight_sum = tl.load(weights_ptr + b * num_splits)
    for split in range(1, num_splits):
        weight_sum += tl.load(weights_ptr + b * num_splits + split)
    divisor = tl.where(weight_sum != 0, weight_sum, 1.0)
    scale = tl.where(weight_sum != 0, 1.0 / divisor, 0.0)

    norm = 1.0
    if NORMALIZE:
        squares = tl.zeros([BLOCK_C], ACC_DTYPE)
        for c in range(0, width, BLOCK_C):
            offs_c = c + tl.arange(0, BLOCK_C)
            mean = _mean(sums_ptr, b, divisor, offs_c, width, num_splits, ACC_DTYPE)
            squares += mean * mean
        norm = tl.sqrt(tl.sum(squares, axis=0))
        # Divided by infinity the vector would be zeros, and look healthy.
        norm = tl.where(norm == float("inf"), float("nan"), norm)
        # Written so that a NaN norm stays NaN.
        scale = tl.where(norm == 0, 0.0, scale / tl.where(norm < _FLOOR, _FLOOR, norm))
    tl.store(scale_ptr + b, scale)

    for c in range(0, width, BLOCK_C):
        offs_c = c + tl.arange(0, BLOCK_C)
        in_range_c = offs_c < width
        pooled = _mean(sums_ptr, b, divisor, offs_c, width, num_splits, ACC_DTYPE)
        if NORMALIZE:
            pooled = pooled / tl.where(norm < _FLOOR, _FLOOR, norm)
            # Below the floor the norm is a constant: nothing to project out of the gradient.
            unit = tl.where(norm < _FLOOR, 0.0, pooled)
            tl.store(unit_ptr + b * width + offs_c, unit, mask=in_range_c)
        pooled = pooled.to(pooled_ptr.dtype.element_ty)
        tl.store(pooled_ptr + b * width + offs_c, pooled, mask=in_range_c)


def masked_mean_pool_fwd(
    hidden: Tensor, mask: Tensor, normalize: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """(B, T, C), (B, T) -> pooled (B, C), unit (B, C) or (0, C), scale (B,)."""
    return _fwd(hidden, mask, None, mask.shape[0], mask.shape[1], normalize)


def mean_pool_varlen_fwd(
    hidden: Tensor, cu_seqlens: Tensor, normalize: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """(total, C), (B + 1,) -> as masked_mean_pool_fwd."""
    num_sentences = cu_seqlens.shape[0] - 1
    mean_length = triton.cdiv(hidden.shape[0], max(num_sentences, 1))
    return _fwd(hidden[None], None, cu_seqlens.contiguous(), num_sentences, mean_length, normalize)


def _fwd(
    hidden: Tensor,
    mask: Tensor | None,
    cu_seqlens: Tensor | None,
    num_sentences: int,
    tokens_per_sentence: int,
    normalize: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    width, dtype = hidden.shape[2], accumulator(hidden.dtype)
    pooled = hidden.new_empty(num_sentences, width)
    unit = hidden.new_empty(num_sentences if normalize else 0, width, dtype=dtype)
    scale = hidden.new_empty(num_sentences, dtype=dtype)
    if pooled.numel() == 0:
        return pooled, unit, scale.zero_()
    tile = tile_for(width, hidden.dtype, compute_capability(hidden))
    num_splits = min(max(triton.cdiv(tokens_per_sentence, TOKENS_PER_PROGRAM), 1), MAX_SPLITS)
    is_whole = num_splits == 1 and not normalize
    sums, weights = pooled, scale
    if not is_whole:
        sums = hidden.new_empty(num_sentences, num_splits, width, dtype=dtype)
        weights = hidden.new_empty(num_sentences, num_splits, dtype=dtype)
    grid = (num_sentences * num_splits * triton.cdiv(width, tile.block_c),)
    stride_hb, stride_ht, stride_hc = hidden.stride()
    stride_mb, stride_mt = mask.stride() if mask is not None else (0, 0)
    with device_guard(hidden):
        _mean_pool_fwd_kernel[grid](
            hidden_ptr=hidden, mask_ptr=mask, cu_seqlens_ptr=cu_seqlens,
            sums_ptr=sums, weights_ptr=weights,
            num_tokens=hidden.shape[1], width=width, num_splits=num_splits,
            stride_hb=stride_hb, stride_ht=stride_ht, stride_hc=stride_hc,
            stride_mb=stride_mb, stride_mt=stride_mt,
            HAS_MASK=mask is not None, IS_WHOLE=is_whole,
            BLOCK_T=tile.block_t, BLOCK_C=tile.block_c,
            ACC_DTYPE=accumulator_dtype(hidden.dtype), num_warps=tile.num_warps,
        )  # fmt: skip
        if not is_whole:
            _mean_pool_finish_kernel[(num_sentences,)](
                sums_ptr=sums, weights_ptr=weights,
                pooled_ptr=pooled, unit_ptr=unit if normalize else None, scale_ptr=scale,
                width=width, num_splits=num_splits,
                NORMALIZE=normalize, BLOCK_C=row_block(width),
                ACC_DTYPE=accumulator_dtype(hidden.dtype), num_warps=ROW_WARPS,
            )  # fmt: skip
    return pooled, unit, scale


def tile_for(width: int, dtype: torch.dtype, capability: int) -> Tile:
    """The shipped tile, no wider than the rows are."""
    first = max((key for key in TILES if key <= capability), default=min(TILES))
    tile = TILES[first][dtype.itemsize]
    return tile._replace(block_c=min(tile.block_c, max(16, triton.next_power_of_2(width))))


def row_block(width: int) -> int:
    """Features that a program working on whole vectors handles at a time."""
    return min(MAX_ROW_BLOCK, int(triton.next_power_of_2(width)))


# Triton's names of each dtype and of its accumulator.
TYPE_NAMES = {
    torch.bfloat16: ("bf16", "fp32"),
    torch.float16: ("fp16", "fp32"),
    torch.float32: ("fp32", "fp32"),
    torch.float64: ("fp64", "fp64"),
}
