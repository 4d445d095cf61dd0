"""Exponentials that the forward pass keeps, and the gradient matrix formed from them.

    kept[i, j] = e^z[i, j] / ||k_j||, rounded to the operands' dtype and 0 at the positive
    H[i, j] = kept[i, j] * (a_i + b_j) / ||q_i||

so that the backward pass multiplies no logits again: three products instead of four. Only where a
bound of the logits is known, whose exponentials are normal numbers of 8 exponent bits; not in
float16, which has 5. H formed so is as exact as H from recomputed logits: both round once.

Reads and writes 2 bytes per logit in bfloat16. Where not even a chunk is to be kept, and for
further positives and learned temperatures, contrastive_gradient recomputes.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from crossalign.contrastive.problem import ContrastiveProblem
from crossalign.kernels.contrastive_coefficients import GradientVectors
from crossalign.kernels.launch import INTERPRETED
from crossalign.kernels.tiles import GradientChunk

# A block of the element-wise kernel. Workspaces are whole blocks, and whole tiles of every kernel.
BLOCK_N, BLOCK_M = (16, 32) if INTERPRETED else (16, 256)
ROW_GRANULE = BLOCK_N if INTERPRETED else 128
# Of a symmetric loss: with as large a matrix H, what the workspace of the recomputing backward has.
KEPT_BYTES = 2**26


@triton.jit
def keep_exponentials(
    kept, logits, candidate_inverse_norm_ptr, stride_kn, first_row, first_column, num_queries,
    num_candidates, USE_DESCRIPTORS: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """Stores one tile; logits: [BLOCK_N, BLOCK_M] in log2 units, -inf where nothing is to count."""
    offs_m = first_column + tl.arange(0, logits.shape[1])
    inverse_norm = tl.load(
        candidate_inverse_norm_ptr + offs_m, mask=offs_m < num_candidates, other=0.0
    )
    tile = (tl.exp2(logits) * inverse_norm[None, :]).to(DTYPE)
    if USE_DESCRIPTORS:
        kept.store([first_row, first_column], tile)
    else:
        base = kept + first_row.to(tl.int64) * stride_kn + first_column
        offs_n = tl.arange(0, logits.shape[0])
        ptrs = base + offs_n[:, None] * stride_kn + tl.arange(0, logits.shape[1])[None, :]
        # One answer for a whole tile, so that stores stay as wide as without a mask: a program's
        # rectangle may go past the last block of rows or columns.
        tl.store(ptrs, tile, mask=(first_row < num_queries) & (first_column < num_candidates))


@triton.jit(
    do_not_specialize=[
        "num_queries", "num_candidates", "first_chunk_row", "first_chunk_column", "blocks_m",
    ]
)  # fmt: skip
def _kept_gradient_kernel(
    kept_ptr,  # (N or more, M or more)
    row_vectors_ptr,  # (5, N): see contrastive_coefficients
    column_vectors_ptr,  # (5, M)
    gradient_ptr,  # (whole blocks of rows, of columns) out
    stride_kn, stride_gn,
    num_queries, num_candidates, first_chunk_row, first_chunk_column, blocks_m,
    SYMMETRIC: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """H of one block; both matrices hold whole blocks, so that no access needs a mask."""
    offs_n = tl.program_id(0) // blocks_m * BLOCK_N + tl.arange(0, BLOCK_N)
    offs_m = tl.program_id(0) % blocks_m * BLOCK_M + tl.arange(0, BLOCK_M)
    rows = first_chunk_row + offs_n
    columns = first_chunk_column + offs_m
    in_range_n = rows < num_queries
    offs_kept = rows.to(tl.int64)[:, None] * stride_kn + columns[None, :]
    tile = tl.load(kept_ptr + offs_kept).to(row_vectors_ptr.dtype.element_ty)
    coefficient = tl.load(row_vectors_ptr + rows, mask=in_range_n, other=0.0)[:, None]
    if SYMMETRIC:
        of_column = tl.load(column_vectors_ptr + columns, mask=columns < num_candidates, other=0.0)
        coefficient += of_column[None, :]
    norm_share_ptrs = row_vectors_ptr + 3 * num_queries.to(tl.int64) + rows
    tile *= coefficient * tl.load(norm_share_ptrs, mask=in_range_n, other=0.0)[:, None]
    offs_gradient = offs_n.to(tl.int64)[:, None] * stride_gn + offs_m[None, :]
    tl.store(gradient_ptr + offs_gradient, tile.to(gradient_ptr.dtype.element_ty))


def kept_gradient(
    kept: Tensor,
    vectors: GradientVectors,
    chunk: GradientChunk,
    gradient: Tensor,
    problem: ContrastiveProblem,
) -> None:
    """Fills gradient, a workspace of whole blocks, with H of the chunk."""
    blocks_m = triton.cdiv(chunk.columns.stop - chunk.columns.start, BLOCK_M)
    num_blocks = triton.cdiv(chunk.rows.stop - chunk.rows.start, BLOCK_N) * blocks_m
    _kept_gradient_kernel[(num_blocks,)](
        kept_ptr=kept,
        row_vectors_ptr=vectors.rows,
        column_vectors_ptr=vectors.candidates,
        gradient_ptr=gradient,
        stride_kn=kept.stride(0),
        stride_gn=gradient.stride(0),
        num_queries=vectors.rows.shape[1],
        num_candidates=vectors.candidates.shape[1],
        first_chunk_row=chunk.rows.start,
        first_chunk_column=chunk.columns.start,
        blocks_m=blocks_m,
        SYMMETRIC=problem.symmetric,
        BLOCK_N=BLOCK_N,
        BLOCK_M=BLOCK_M,
    )


def may_keep(like: Tensor, problem: ContrastiveProblem) -> bool:
    """Whether exponentials can stand for the logits in the backward pass."""
    return (
        like.dtype in (torch.bfloat16, torch.float32)
        and problem.bound is not None
        and problem.normalize
        and not (problem.multi_positive or problem.with_logit_sums or problem.exclude_label)
        and not (problem.symmetric and problem.has_limits)
        and not problem.scale.requires_grad
    )


def empty_kept(num_rows: int, num_columns: int, like: Tensor) -> Tensor:
    """A workspace of whole blocks and tiles."""
    return like.new_empty(
        triton.cdiv(num_rows, ROW_GRANULE) * ROW_GRANULE,
        triton.cdiv(num_columns, BLOCK_M) * BLOCK_M,
    )


def kept_for_backward(
    num_queries: int, num_candidates: int, like: Tensor, problem: ContrastiveProblem
) -> Tensor | None:
    """A workspace for all exponentials, if they are few enough."""
    num_bytes = num_queries * num_candidates * like.element_size()
    if num_bytes > KEPT_BYTES or not may_keep(like, problem):
        return None
    return empty_kept(num_queries, num_candidates, like)
