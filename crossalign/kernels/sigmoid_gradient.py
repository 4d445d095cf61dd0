"""The gradient of a chunk of the sigmoid loss's logits, recomputed and rounded for the products.

    H[i, j] = G[i, j] * rq_i * rk_j,   G[i, j] = g_i * -y sigmoid(-y z[i, j]), 0 at the own key

The own key's gradient is the largest of its row by far, and rounding it would be the error of the
whole; it is added to the products in float32. The gradients of scale and bias sum G before the
rounding. Reads 2 operand tiles per tile, writes each element of H once.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from crossalign.kernels.contrastive_logits import BATCH_SIZES, LOG2_E, holds_labels, label_mask
from crossalign.kernels.launch import store_tile
from crossalign.kernels.operands import SHORT_NAMES, TRITON_DTYPES, TileOperands
from crossalign.kernels.sigmoid_logits import negate_positives, sigmoid, unbiased_logits
from crossalign.kernels.tiles import GradientChunk, Tiles, program_slots


class SigmoidVectors(NamedTuple):
    """What the tile kernel reads beside the rules."""

    bias: Tensor  # ()
    grad_terms: Tensor  # (N,)
    row_fold: Tensor | None  # (N,)
    column_fold: Tensor | None  # (M,)


@triton.jit(
    do_not_specialize=[
        *BATCH_SIZES, "first_chunk_row", "first_chunk_column", "first_partial",
    ]
)  # fmt: skip
def _sigmoid_bwd_kernel(
    query,  # (N, D) descriptor, or pointer
    candidates,  # (M, D) descriptor, or pointer
    rules,  # TileRules
    vectors,  # SigmoidVectors
    gradient_out,  # (whole tiles of rows, of columns) descriptor, or pointer
    scalar_partials,  # (tiles of all chunks,) twice, out: sums of G * (z - bias), of G
    strides,  # of query, candidates, gradient_out
    weights,  # unread
    num_queries, num_candidates, num_keys, num_ids, num_features, label_offset,
    first_chunk_row, first_chunk_column, num_tiles_m, num_tiles, first_partial,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
    flags: tl.constexpr,  # TileFlags
):  # fmt: skip
    """H of the tiles of one chunk, dealt to programs round-robin."""
    for tile in tl.range(tl.program_id(0), num_tiles, tl.num_programs(0), flatten=True):
        first_row = first_chunk_row + tile // num_tiles_m * BLOCK_N
        first_column = first_chunk_column + tile % num_tiles_m * BLOCK_M
        logits = unbiased_logits(
            query, candidates, rules, strides, first_row, first_column, num_queries,
            num_candidates, num_features, BLOCK_N, BLOCK_M, BLOCK_D, flags,
        )  # fmt: skip
        offs_n = first_row + tl.arange(0, BLOCK_N)
        offs_m = first_column + tl.arange(0, BLOCK_M)
        in_range_n = offs_n < num_queries
        in_range_m = offs_m < num_candidates
        signed = negate_positives(
            logits + tl.load(vectors.bias) * LOG2_E, rules, first_row, first_column, num_queries,
            num_candidates, label_offset, BLOCK_N, BLOCK_M, flags.HAS_IDS,
        )  # fmt: skip
        gradient = negate_positives(
            sigmoid(signed), rules, first_row, first_column, num_queries, num_candidates,
            label_offset, BLOCK_N, BLOCK_M, flags.HAS_IDS,
        )  # fmt: skip
        gradient *= tl.load(vectors.grad_terms + offs_n, mask=in_range_n, other=0.0)[:, None]
        if holds_labels(first_row, first_column, label_offset, BLOCK_N, BLOCK_M):
            is_label = label_mask(offs_n, offs_m, label_offset, num_candidates)
            gradient = tl.where(is_label, 0.0, gradient)
        if flags.NEED_SCALE_GRAD:
            counted = tl.where(in_range_m[None, :], gradient, 0.0)
            tl.store(scalar_partials[0] + first_partial + tile, tl.sum(counted * logits))
            tl.store(scalar_partials[1] + first_partial + tile, tl.sum(counted))
        if flags.NORMALIZE:
            gradient *= tl.load(vectors.row_fold + offs_n, mask=in_range_n, other=0.0)[:, None]
            column_fold = tl.load(vectors.column_fold + offs_m, mask=in_range_m, other=0.0)
            gradient *= column_fold[None, :]
        store_tile(
            gradient_out, gradient.to(flags.DTYPE), strides[2], first_row - first_chunk_row,
            first_column - first_chunk_column, flags.USE_DESCRIPTORS,
        )  # fmt: skip


def sigmoid_gradient_tiles(
    operands: TileOperands,
    vectors: SigmoidVectors,
    tiles: Tiles,
    chunk: GradientChunk,
    gradient: Tensor,
    partials: Tensor | None,
) -> None:
    """Fills gradient (whole tiles of the chunk's rows and columns) with H; partials: (2, tiles)."""
    _sigmoid_bwd_kernel[(min(chunk.num_tiles(tiles), program_slots(operands.query)),)](
        **operands.tile_arguments(
            tiles,
            NEED_SCALE_GRAD=partials is not None,
            DTYPE=TRITON_DTYPES[SHORT_NAMES[gradient.dtype]],
        ),
        vectors=vectors,
        gradient_out=operands.output(gradient, tiles),
        scalar_partials=(None, None) if partials is None else (partials[0], partials[1]),
        strides=(*operands.strides, gradient.stride(0)),
        first_chunk_row=chunk.rows.start,
        first_chunk_column=chunk.columns.start,
        num_tiles_m=triton.cdiv(chunk.num_columns, tiles.block_m),
        num_tiles=chunk.num_tiles(tiles),
        first_partial=chunk.first_partial,
    )
