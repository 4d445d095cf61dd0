"""The gradient of a chunk of the sigmoid loss's logits, recomputed and rounded for the products.

    H[i, j] = G[i, j] * rq_i * rk_j,   G[i, j] = g_i * -y sigmoid(-y z[i, j]), 0 at the own key

The own key's gradient is the largest of its row by far, and rounding it would be the error of the
whole; it is added to the products in float32. The gradients of scale and bias sum G before the
rounding. Reads 2 operand tiles per tile, writes each element of H once.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from crossalign.kernels.contrastive_logits import BATCH_SIZES, LOG2_E, holds_labels, label_mask
from crossalign.kernels.operands import SHORT_NAMES, TRITON_DTYPES, TileOperands
from crossalign.kernels.sigmoid_forward import ID_ARGUMENTS
from crossalign.kernels.sigmoid_logits import negate_positives, sigmoid, unbiased_logits
from crossalign.kernels.tiles import Tiles, program_slots


@triton.jit
def _store_tile(
    out, tile, stride, first_row, first_column, in_range_n, in_range_m,
    USE_DESCRIPTORS: tl.constexpr,
):  # fmt: skip
    if USE_DESCRIPTORS:
        out.store([first_row, first_column], tile)
    else:
        base = out + first_row.to(tl.int64) * stride + first_column
        ptrs = base + tl.arange(0, tile.shape[0])[:, None] * stride + tl.arange(0, tile.shape[1])
        tl.store(ptrs, tile, mask=in_range_n[:, None] & in_range_m[None, :])


@triton.jit(do_not_specialize=[*BATCH_SIZES, "first_chunk_row", "first_chunk_column"])
def _sigmoid_bwd_kernel(
    query,  # (N, D) descriptor, or pointer
    candidates,  # (M, D) descriptor, or pointer
    scale_ptr,  # ()
    bias_ptr,  # ()
    query_inverse_norm_ptr,  # (N,)
    candidate_inverse_norm_ptr,  # (M,)
    query_ids_ptr,  # (N,)
    candidate_ids_ptr,  # (M,)
    grad_terms_ptr,  # (N,)
    row_fold_ptr,  # (N,) or None
    column_fold_ptr,  # (M,) or None
    gradient_out,  # (chunk rows, chunk columns) descriptor, or pointer
    scalar_partial_ptr,  # (2, row tiles, column tiles) out: sums of G * (z - bias), of G
    stride_qn, stride_cm, stride_gn,
    num_queries, num_candidates, num_keys, num_features, label_offset,
    first_chunk_row, first_chunk_column, num_tiles_m, num_tiles,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
    ACC_DTYPE: tl.constexpr, PRECISION: tl.constexpr,
    NORMALIZE: tl.constexpr, USE_DESCRIPTORS: tl.constexpr, HAS_IDS: tl.constexpr,
    NEED_SCALAR_GRADS: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """H of the tiles of one chunk, dealt to programs round-robin."""
    for tile in tl.range(tl.program_id(0), num_tiles, tl.num_programs(0), flatten=True):
        first_row = first_chunk_row + tile // num_tiles_m * BLOCK_N
        first_column = first_chunk_column + tile % num_tiles_m * BLOCK_M
        logits = unbiased_logits(
            query, candidates, scale_ptr, query_inverse_norm_ptr, candidate_inverse_norm_ptr,
            first_row, first_column, stride_qn, stride_cm, num_queries, num_candidates,
            num_features, BLOCK_N, BLOCK_M, BLOCK_D, ACC_DTYPE, PRECISION, NORMALIZE,
            USE_DESCRIPTORS,
        )  # fmt: skip
        offs_n = first_row + tl.arange(0, BLOCK_N)
        offs_m = first_column + tl.arange(0, BLOCK_M)
        in_range_n = offs_n < num_queries
        in_range_m = offs_m < num_candidates
        signed = negate_positives(
            logits + tl.load(bias_ptr) * LOG2_E, query_ids_ptr, candidate_ids_ptr, first_row,
            first_column, num_queries, num_candidates, label_offset, BLOCK_N, BLOCK_M, HAS_IDS,
        )  # fmt: skip
        gradient = negate_positives(
            sigmoid(signed), query_ids_ptr, candidate_ids_ptr, first_row, first_column,
            num_queries, num_candidates, label_offset, BLOCK_N, BLOCK_M, HAS_IDS,
        )  # fmt: skip
        gradient *= tl.load(grad_terms_ptr + offs_n, mask=in_range_n, other=0.0)[:, None]
        if holds_labels(first_row, first_column, label_offset, BLOCK_N, BLOCK_M):
            is_label = label_mask(offs_n, offs_m, label_offset, num_candidates)
            gradient = tl.where(is_label, 0.0, gradient)
        if NEED_SCALAR_GRADS:
            counted = tl.where(in_range_m[None, :], gradient, 0.0)
            tiles_of_row = tl.cdiv(num_candidates, BLOCK_M).to(tl.int64)
            num_partials = tl.cdiv(num_queries, BLOCK_N) * tiles_of_row
            index = first_row // BLOCK_N * tiles_of_row + first_column // BLOCK_M
            tl.store(scalar_partial_ptr + index, tl.sum(counted * logits))
            tl.store(scalar_partial_ptr + num_partials + index, tl.sum(counted))
        if row_fold_ptr is not None:
            gradient *= tl.load(row_fold_ptr + offs_n, mask=in_range_n, other=0.0)[:, None]
            gradient *= tl.load(column_fold_ptr + offs_m, mask=in_range_m, other=0.0)[None, :]
        _store_tile(
            gradient_out, gradient.to(DTYPE), stride_gn, first_row - first_chunk_row,
            first_column - first_chunk_column, in_range_n, in_range_m, USE_DESCRIPTORS,
        )  # fmt: skip


def sigmoid_gradient_tiles(
    operands: TileOperands,
    bias: Tensor,
    grad_terms: Tensor,
    folds: tuple[Tensor | None, Tensor | None],
    tiles: Tiles,
    rows: slice,
    span: slice,
    gradient: Tensor,
    scalar_partial: Tensor | None,
) -> None:
    """Fills gradient (chunk rows, chunk columns) with H, and scalar_partial where it is given."""
    num_tiles_m = triton.cdiv(gradient.shape[1], tiles.block_m)
    num_tiles = triton.cdiv(gradient.shape[0], tiles.block_n) * num_tiles_m
    rules = operands.rule_arguments()
    _sigmoid_bwd_kernel[(min(num_tiles, program_slots(operands.query)),)](
        **operands.tile_arguments(tiles),
        **{name: rules[name] for name in ID_ARGUMENTS},
        bias_ptr=bias,
        grad_terms_ptr=grad_terms,
        row_fold_ptr=folds[0],
        column_fold_ptr=folds[1],
        gradient_out=operands.output(gradient, tiles),
        scalar_partial_ptr=scalar_partial,
        stride_gn=gradient.stride(0),
        first_chunk_row=rows.start,
        first_chunk_column=span.start,
        num_tiles_m=num_tiles_m,
        num_tiles=num_tiles,
        NEED_SCALAR_GRADS=scalar_partial is not None,
        DTYPE=TRITON_DTYPES[SHORT_NAMES[gradient.dtype]],
    )
