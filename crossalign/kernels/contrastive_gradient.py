"""The gradient of a chunk of logits, recomputed tile by tile and rounded for the products.

    H[i, j] = G[i, j] * rq_i * rk_j,   G[i, j] = a_i e^z[i, j] + b_j e^z[i, j] (+ the further
    positives' coefficients), and 0 at the positive, which row_gradients adds in float32

Logits are formed exactly as in the forward pass. G stays in float32 until the store; the gradient
of the scale sums G * logit before the rounding. Reads 2 operand tiles per tile, writes each element
of H once. The workspace holds whole tiles, so that stores need no mask: with one, Triton stores two
bytes at a time where a thread could store sixteen.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from crossalign.kernels.contrastive_coefficients import GradientVectors
from crossalign.kernels.contrastive_logits import (
    BATCH_SIZES,
    LOG2_E,
    owned_mask,
    ruled_logits,
)
from crossalign.kernels.contrastive_sums import counted_logits
from crossalign.kernels.launch import store_tile
from crossalign.kernels.operands import TileOperands, gradient_arguments
from crossalign.kernels.tiles import GradientChunk, Tiles, program_slots

LOWEST = tl.constexpr(-3.0e38)


@triton.jit
def _rest_gradient(
    of_rows,  # [BLOCK_N, BLOCK_M] logits
    of_columns,  # [BLOCK_N, BLOCK_M] the same, but for what limits leave out
    row_ptrs,  # [BLOCK_N]: coefficient, and rest num_queries further
    column_ptrs,  # [BLOCK_M]: coefficient, and rest num_candidates further
    num_queries,
    num_candidates,
    in_range_n,
    in_range_m,
    flags: tl.constexpr,
):
    """a_i e^(z - rest_i) + b_j e^(z - rest_j)  # [BLOCK_N, BLOCK_M]"""
    row_coefficient = tl.load(row_ptrs, mask=in_range_n, other=0.0)[:, None]
    column_coefficient = tl.load(column_ptrs, mask=in_range_m, other=0.0)[None, :]
    if flags.IS_BOUNDED:
        # The coefficients hold exp(-rest): without limits one exponential for both directions.
        if flags.SYMMETRIC and flags.HAS_LIMITS:
            gradient = tl.exp2(of_rows) * row_coefficient
            return gradient + tl.exp2(of_columns) * column_coefficient
        elif flags.SYMMETRIC:
            return tl.exp2(of_rows) * (row_coefficient + column_coefficient)
        else:
            return tl.exp2(of_rows) * row_coefficient
    else:
        rest = tl.load(row_ptrs + num_queries, mask=in_range_n, other=0.0)[:, None]
        gradient = row_coefficient * tl.exp2(of_rows - rest)
        if flags.SYMMETRIC:
            rest = tl.load(column_ptrs + num_candidates, mask=in_range_m, other=0.0)[None, :]
            gradient += column_coefficient * tl.exp2(of_columns - rest)
        return gradient


@triton.jit
def _sum_gradient(
    gradient,  # [BLOCK_N, BLOCK_M]
    of_rows,  # [BLOCK_N, BLOCK_M] logits
    of_columns,  # [BLOCK_N, BLOCK_M]
    is_positive,  # [BLOCK_N, BLOCK_M]
    row_ptrs,  # [BLOCK_N]: as above; of sums of positives, of logits: two, four lines further
    column_ptrs,  # [BLOCK_M] likewise
    num_queries,
    num_candidates,
    in_range_n,
    in_range_m,
    flags: tl.constexpr,
):
    """Adds what flows through the sums of further positives, and through those of all logits."""
    if flags.MULTI_POSITIVE:
        coefficient = tl.load(row_ptrs + 2 * num_queries, mask=in_range_n, other=0.0)[:, None]
        if flags.SYMMETRIC:
            column_part = tl.load(column_ptrs + 2 * num_candidates, mask=in_range_m, other=0.0)
            coefficient += column_part[None, :]
        gradient = tl.where(is_positive, gradient + coefficient, gradient)
    if flags.WITH_LOGIT_SUMS:
        coefficient = tl.load(row_ptrs + 4 * num_queries, mask=in_range_n, other=0.0)[:, None]
        # Zeros are added, not sums selected: on those LLVM aborts for sm_80 (Triton 3.7.1).
        gradient += tl.where(of_rows > float("-inf"), coefficient, 0.0)
        if flags.SYMMETRIC:
            column_part = tl.load(column_ptrs + 4 * num_candidates, mask=in_range_m, other=0.0)
            gradient += tl.where(of_columns > float("-inf"), column_part[None, :], 0.0)
    return gradient


@triton.jit
def _scale_sum(
    gradient,  # [BLOCK_N, BLOCK_M]
    plain,  # [BLOCK_N, BLOCK_M] scaled similarities
    logits,  # [BLOCK_N, BLOCK_M]
    negative_owner_ptr,
    offs_n, offs_m,
    first_column, num_candidates, num_keys,
    hard_negative_weight,
    BLOCK_M: tl.constexpr,
    flags: tl.constexpr,
):  # fmt: skip
    """() the sum of gradient * scaled similarity."""
    if flags.HARDNESS_ON != "none":
        total = tl.sum(gradient * plain)
    else:
        # Where a logit is -inf its gradient is 0; a finite one keeps their product 0.
        total = tl.sum(gradient * tl.maximum(logits, LOWEST))
        if flags.HAS_OWNERS and first_column + BLOCK_M > num_keys:
            # The weight is no part of the similarity that the scale multiplies.
            is_owned = owned_mask(negative_owner_ptr, offs_n, offs_m, num_keys, num_candidates)
            of_owned = tl.sum(tl.where(is_owned, gradient, 0.0))
            total -= hard_negative_weight * LOG2_E * of_owned
    return total


@triton.jit(
    do_not_specialize=[
        *BATCH_SIZES, "first_chunk_row", "first_chunk_column", "first_partial",
    ]
)  # fmt: skip
def _contrastive_bwd_kernel(
    query,  # (N, D) descriptor, or pointer
    candidates,  # (M, D) descriptor, or pointer
    rules,  # TileRules
    vectors,  # GradientVectors: (5, N) and (5, M)
    gradient_out,  # (whole tiles of rows, of columns) descriptor, or pointer
    scale_partial_ptr,  # (tiles of all chunks,) out: sums of G * logit off the positives
    strides,  # of query, candidates, gradient_out
    weights,  # hard_negative_weight, hardness
    num_queries, num_candidates, num_keys, num_ids, num_features, label_offset,
    first_chunk_row, first_chunk_column, num_tiles_m, num_tiles, first_partial,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
    flags: tl.constexpr,  # TileFlags
):  # fmt: skip
    """H of the tiles of one chunk, dealt to programs round-robin."""
    row_size = num_queries.to(tl.int64)
    column_size = num_candidates.to(tl.int64)
    for tile in tl.range(tl.program_id(0), num_tiles, tl.num_programs(0), flatten=True):
        first_row = first_chunk_row + tile // num_tiles_m * BLOCK_N
        first_column = first_chunk_column + tile % num_tiles_m * BLOCK_M
        plain, logits = ruled_logits(
            query, candidates, rules, strides, weights, first_row, first_column, num_queries,
            num_candidates, num_keys, num_ids, num_features, label_offset, BLOCK_N, BLOCK_M,
            BLOCK_D, flags,
        )  # fmt: skip
        offs_n = first_row + tl.arange(0, BLOCK_N)
        offs_m = first_column + tl.arange(0, BLOCK_M)
        in_range_n = offs_n < num_queries
        in_range_m = offs_m < num_candidates
        row_ptrs = vectors.rows + offs_n
        column_ptrs = vectors.candidates + offs_m
        of_rows, of_columns, is_positive = counted_logits(
            plain, logits, rules, offs_n, offs_m, num_queries, num_candidates, num_keys, num_ids,
            flags,
        )  # fmt: skip
        gradient = _rest_gradient(
            of_rows, of_columns, row_ptrs, column_ptrs, row_size, column_size, in_range_n,
            in_range_m, flags,
        )  # fmt: skip
        gradient = _sum_gradient(
            gradient, of_rows, of_columns, is_positive, row_ptrs, column_ptrs, row_size,
            column_size, in_range_n, in_range_m, flags,
        )  # fmt: skip
        if flags.NEED_SCALE_GRAD:
            # What is left out by limits or ids has a gradient of 0, and a finite logit.
            total = _scale_sum(
                gradient, plain, logits, rules.negative_owner_ptr, offs_n, offs_m, first_column,
                num_candidates, num_keys, weights[0], BLOCK_M, flags,
            )  # fmt: skip
            tl.store(scale_partial_ptr + first_partial + tile, total)
        if flags.NORMALIZE:
            gradient *= tl.load(row_ptrs + 3 * row_size, mask=in_range_n, other=0.0)[:, None]
            gradient *= tl.load(column_ptrs + 3 * column_size, mask=in_range_m, other=0.0)[None, :]
        store_tile(
            gradient_out, gradient.to(flags.DTYPE), strides[2], first_row - first_chunk_row,
            first_column - first_chunk_column, flags.USE_DESCRIPTORS,
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
        **gradient_arguments(
            operands, tiles, chunk, gradient, need_scale_grad=scale_partial is not None
        ),
        vectors=vectors,
        scale_partial_ptr=scale_partial,
    )
