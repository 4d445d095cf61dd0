"""The gradient of a chunk of logits, recomputed tile by tile and rounded for the products.

    H[i, j] = G[i, j] * rq_i * rk_j,   G[i, j] = a_i e^z[i, j] + b_j e^z[i, j] (+ the further
    positives' coefficients), and 0 at the positive, which row_gradients adds in float32

Logits are formed exactly as in the forward pass. G stays in float32 until the store; the gradient
of the scale sums G * logit before the rounding. Reads 2 operand tiles per tile, writes each element
of H once. The workspace holds whole tiles, so that stores need no mask: with one, Triton stores two
bytes at a time where a thread could store sixteen.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from crossalign.kernels.contrastive_coefficients import GradientVectors
from crossalign.kernels.contrastive_logits import (
    BATCH_SIZES,
    LOG2_E,
    equal_ids,
    negative_logits,
)
from crossalign.kernels.operands import SHORT_NAMES, TRITON_DTYPES, TileOperands
from crossalign.kernels.tiles import Tiles, program_slots

LOWEST = tl.constexpr(-3.0e38)


class GradientChunk(NamedTuple):
    """Rows times columns of logits, as large as the workspace."""

    rows: slice
    columns: slice
    first_partial: int  # where this chunk's sums for the scale begin

    @property
    def num_columns(self) -> int:
        return int(self.columns.stop - self.columns.start)

    def num_tiles(self, tiles: Tiles) -> int:
        num_rows = self.rows.stop - self.rows.start
        return int(-(-num_rows // tiles.block_n) * -(-self.num_columns // tiles.block_m))


@triton.jit
def _owned_sum(
    gradient,  # [BLOCK_N, BLOCK_M]
    negative_owner_ptr,
    offs_n,
    offs_m,
    num_keys,
    num_candidates,
):
    """The sum of the gradient over the queries' own hard negatives."""
    is_negative = (offs_m >= num_keys) & (offs_m < num_candidates)
    owner = tl.load(negative_owner_ptr + (offs_m - num_keys), mask=is_negative, other=-1)
    return tl.sum(tl.where(offs_n[:, None] == owner[None, :], gradient, 0.0))


@triton.jit
def _rest_gradient(
    logits,  # [BLOCK_N, BLOCK_M]
    row_ptrs,  # [BLOCK_N]: coefficient, and rest num_queries further
    column_ptrs,  # [BLOCK_M]: coefficient, and rest num_candidates further
    num_queries,
    num_candidates,
    in_range_n,
    in_range_m,
    SYMMETRIC: tl.constexpr,
    IS_BOUNDED: tl.constexpr,
):
    """a_i e^(z - rest_i) + b_j e^(z - rest_j)  # [BLOCK_N, BLOCK_M]"""
    row_coefficient = tl.load(row_ptrs, mask=in_range_n, other=0.0)[:, None]
    column_coefficient = tl.load(column_ptrs, mask=in_range_m, other=0.0)[None, :]
    if IS_BOUNDED:
        # The coefficients hold exp(-rest): one exponential for both directions.
        coefficient = row_coefficient + column_coefficient if SYMMETRIC else row_coefficient
        return tl.exp2(logits) * coefficient
    else:
        rest = tl.load(row_ptrs + num_queries, mask=in_range_n, other=0.0)[:, None]
        gradient = row_coefficient * tl.exp2(logits - rest)
        if SYMMETRIC:
            rest = tl.load(column_ptrs + num_candidates, mask=in_range_m, other=0.0)[None, :]
            gradient += column_coefficient * tl.exp2(logits - rest)
        return gradient


@triton.jit
def _store_tile(out, tile, stride, first_row, first_column, USE_DESCRIPTORS: tl.constexpr):
    if USE_DESCRIPTORS:
        out.store([first_row, first_column], tile)
    else:
        base = out + first_row.to(tl.int64) * stride + first_column
        ptrs = base + tl.arange(0, tile.shape[0])[:, None] * stride + tl.arange(0, tile.shape[1])
        tl.store(ptrs, tile)


@triton.jit(
    do_not_specialize=[
        *BATCH_SIZES, "first_chunk_row", "first_chunk_column", "first_partial",
    ]
)  # fmt: skip
def _contrastive_bwd_kernel(
    query,  # (N, D) descriptor, or pointer
    candidates,  # (M, D) descriptor, or pointer
    scale_ptr,  # ()
    query_inverse_norm_ptr,  # (N,)
    candidate_inverse_norm_ptr,  # (M,)
    query_ids_ptr,  # (N,)
    candidate_ids_ptr,  # (num_ids,)
    negative_owner_ptr,  # (M - K,)
    row_vectors_ptr,  # (4, N): see contrastive_coefficients
    column_vectors_ptr,  # (4, M)
    gradient_out,  # (whole tiles of rows, of columns) descriptor, or pointer
    scale_partial_ptr,  # (tiles of all chunks,) out: sums of G * logit off the positives
    stride_qn, stride_cm, stride_gn,
    num_queries, num_candidates, num_keys, num_ids, num_features, label_offset,
    first_chunk_row, first_chunk_column, num_tiles_m, num_tiles, first_partial,
    hard_negative_weight,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
    ACC_DTYPE: tl.constexpr, PRECISION: tl.constexpr,
    NORMALIZE: tl.constexpr, USE_DESCRIPTORS: tl.constexpr,
    SYMMETRIC: tl.constexpr, IS_BOUNDED: tl.constexpr, HAS_IDS: tl.constexpr,
    MULTI_POSITIVE: tl.constexpr, HAS_OWNERS: tl.constexpr, SHARE_NEGATIVES: tl.constexpr,
    NEED_SCALE_GRAD: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """H of the tiles of one chunk, dealt to programs round-robin."""
    row_size = num_queries.to(tl.int64)
    column_size = num_candidates.to(tl.int64)
    for tile in tl.range(tl.program_id(0), num_tiles, tl.num_programs(0), flatten=True):
        first_row = first_chunk_row + tile // num_tiles_m * BLOCK_N
        first_column = first_chunk_column + tile % num_tiles_m * BLOCK_M
        logits = negative_logits(
            query, candidates, scale_ptr, query_inverse_norm_ptr, candidate_inverse_norm_ptr,
            negative_owner_ptr, first_row, first_column, stride_qn, stride_cm, num_queries,
            num_candidates, num_keys, num_features, label_offset, hard_negative_weight, BLOCK_N,
            BLOCK_M, BLOCK_D, ACC_DTYPE, PRECISION, NORMALIZE, USE_DESCRIPTORS, HAS_OWNERS,
            SHARE_NEGATIVES,
        )  # fmt: skip
        offs_n = first_row + tl.arange(0, BLOCK_N)
        offs_m = first_column + tl.arange(0, BLOCK_M)
        in_range_n = offs_n < num_queries
        in_range_m = offs_m < num_candidates
        row_ptrs = row_vectors_ptr + offs_n
        column_ptrs = column_vectors_ptr + offs_m
        if HAS_IDS:
            is_equal = equal_ids(
                query_ids_ptr, candidate_ids_ptr, offs_n, offs_m, num_queries, num_ids
            )
            if not MULTI_POSITIVE:
                logits = tl.where(is_equal, float("-inf"), logits)
        gradient = _rest_gradient(
            logits, row_ptrs, column_ptrs, row_size, column_size, in_range_n, in_range_m,
            SYMMETRIC, IS_BOUNDED,
        )  # fmt: skip
        if MULTI_POSITIVE:
            coefficient = tl.load(row_ptrs + 2 * row_size, mask=in_range_n, other=0.0)[:, None]
            if SYMMETRIC:
                column_part = tl.load(column_ptrs + 2 * column_size, mask=in_range_m, other=0.0)
                coefficient += column_part[None, :]
            is_positive = is_equal & (logits > float("-inf"))
            gradient = tl.where(is_positive, gradient + coefficient, gradient)
        if NEED_SCALE_GRAD:
            # Where a logit is -inf its gradient is 0; a finite one keeps their product 0.
            total = tl.sum(gradient * tl.maximum(logits, LOWEST))
            if HAS_OWNERS and first_column + BLOCK_M > num_keys:
                # The weight is no part of the similarity that the scale multiplies.
                total -= (
                    hard_negative_weight
                    * LOG2_E
                    * _owned_sum(
                        gradient, negative_owner_ptr, offs_n, offs_m, num_keys, num_candidates
                    )
                )
            tl.store(scale_partial_ptr + first_partial + tile, total)
        if NORMALIZE:
            gradient *= tl.load(row_ptrs + 3 * row_size, mask=in_range_n, other=0.0)[:, None]
            gradient *= tl.load(column_ptrs + 3 * column_size, mask=in_range_m, other=0.0)[None, :]
        _store_tile(
            gradient_out, gradient.to(DTYPE), stride_gn, first_row - first_chunk_row,
            first_column - first_chunk_column, USE_DESCRIPTORS,
        )  # fmt: skip


def gradient_tiles(
    operands: TileOperands,
    vectors: GradientVectors,
    tiles: Tiles,
    chunk: GradientChunk,
    gradient: Tensor,
    scale_partial: Tensor | None,
) -> None:
    """Fills gradient (whole tiles of the chunk's rows and columns) with H."""
    _contrastive_bwd_kernel[(min(chunk.num_tiles(tiles), program_slots(operands.query)),)](
        **operands.tile_arguments(tiles),
        **operands.rule_arguments(),
        row_vectors_ptr=vectors.rows,
        column_vectors_ptr=vectors.candidates,
        gradient_out=operands.output(gradient, tiles),
        scale_partial_ptr=scale_partial,
        stride_gn=gradient.stride(0),
        first_chunk_row=chunk.rows.start,
        first_chunk_column=chunk.columns.start,
        num_tiles_m=triton.cdiv(chunk.num_columns, tiles.block_m),
        num_tiles=chunk.num_tiles(tiles),
        first_partial=chunk.first_partial,
        NEED_SCALE_GRAD=scale_partial is not None,
        DTYPE=TRITON_DTYPES[SHORT_NAMES[gradient.dtype]],
    )
