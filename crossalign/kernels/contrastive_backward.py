"""Gradients of the contrastive sums by recomputed logits: a tile kernel and matrix products.

    G[i, j] = d loss / d z[i, j] = a_i e^z + b_j e^z (off the own column), grad_own[i] on it
    grad_query^ = scale * G @ columns^      grad_columns^ = scale * G.T @ query^

The kernel recomputes a chunk of logits and writes H = G * rq_i * rk_j, rounded to the input dtype,
to a bounded workspace; the library's matrix product then multiplies H with the raw operands in
float32 accumulation. Folding both inverse norms into H lets one chunk serve both products without
normalised copies; each product is divided by its own side's norm afterwards.

In float16 H is kept within range: coefficients are scaled to a largest of 2^13, inverse norms to a
largest of 1, and the float32 result is scaled back.

Per chunk of CHUNK x CHUNK: writes H once, reads it twice. 8 N M D multiply-adds in all with the
forward pass. The temperature gradient sums G * similarity in float32 before G is rounded.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from crossalign.contrastive_problem import (
    NORM_FLOOR,
    ContrastiveGrads,
    ContrastiveProblem,
    ContrastiveSums,
)
from crossalign.kernels.contrastive_logits import (
    BATCH_SIZES,
    LN_2,
    LOG2_E,
    apply_owners,
    equal_ids,
    holds_own_or_edge,
    own_mask,
    scaled_tile,
    similarity_tile,
)
from crossalign.kernels.contrastive_tiles import TileOperands, contrastive_tiles, program_slots
from crossalign.kernels.launch import INTERPRETED, device_guard
from crossalign.kernels.row_norms import scale_rows

# Rows and columns of one chunk of H: large enough for the matrix products to run at full rate and
# for their float32 accumulators to be read and written rarely; 128 MiB in 16 bits.
CHUNK = 64 if INTERPRETED else 8192
# A logit's gradient is at most four times the largest coefficient: below float16's 65,504.
FLOAT16_LARGEST = 2.0**13


@triton.jit(do_not_specialize=[*BATCH_SIZES, "first_chunk_row", "first_chunk_column"])
def _contrastive_bwd_kernel(
    query,  # (N, D) descriptor, or pointer
    columns,  # (M, D) descriptor, or pointer
    scale_ptr,  # ()
    query_inverse_norm_ptr,  # (N,)
    column_inverse_norm_ptr,  # (M,)
    query_ids_ptr,  # (N,)
    column_ids_ptr,  # (num_ids,)
    negative_owner_ptr,  # (M - K,)
    row_vectors_ptr,  # (5, N): coefficient, rest, own gradient, positive coefficient, fold
    column_vectors_ptr,  # (4, M): coefficient, rest, positive coefficient, fold
    gradient_ptr,  # (chunk rows, chunk columns) out
    scale_partial_ptr,  # (tiles,) out: sums of G * logit, per tile
    stride_qn,
    stride_cm,
    stride_gn,
    num_queries,
    num_columns,
    num_keys,
    num_ids,
    num_features,
    label_offset,
    first_chunk_row,
    first_chunk_column,
    num_tiles_m,
    num_tiles,
    shift,
    hard_negative_weight,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ACC_DTYPE: tl.constexpr,
    PRECISION: tl.constexpr,
    NORMALIZE: tl.constexpr,
    USE_DESCRIPTORS: tl.constexpr,
    SYMMETRIC: tl.constexpr,
    CONSTANT_SHIFT: tl.constexpr,
    HAS_IDS: tl.constexpr,
    MULTI_POSITIVE: tl.constexpr,
    HAS_OWNERS: tl.constexpr,
    SHARE_NEGATIVES: tl.constexpr,
    NEED_SCALE_GRAD: tl.constexpr,
):
    """H of the tiles of one chunk, dealt to programs round-robin."""
    for tile in tl.range(tl.program_id(0), num_tiles, tl.num_programs(0), flatten=True):
        first_row = first_chunk_row + tile // num_tiles_m * BLOCK_N
        first_column = first_chunk_column + tile % num_tiles_m * BLOCK_M
        similarity = similarity_tile(
            query, columns, stride_qn, stride_cm, num_queries, num_columns, first_row,
            first_column, num_features, BLOCK_N, BLOCK_M, BLOCK_D, ACC_DTYPE, PRECISION,
            USE_DESCRIPTORS,
        )  # fmt: skip
        offs_n = first_row + tl.arange(0, BLOCK_N)
        offs_m = first_column + tl.arange(0, BLOCK_M)
        in_range_n = offs_n < num_queries
        in_range_m = offs_m < num_columns
        row_ptrs = row_vectors_ptr + offs_n
        column_ptrs = column_vectors_ptr + offs_m
        row_size = num_queries.to(tl.int64)
        column_size = num_columns.to(tl.int64)
        logits = scaled_tile(
            similarity, scale_ptr, query_inverse_norm_ptr, column_inverse_norm_ptr, offs_n,
            offs_m, num_queries, num_columns, NORMALIZE,
        )  # fmt: skip
        unweighted = logits
        if HAS_OWNERS and first_column + BLOCK_M > num_keys:
            logits = apply_owners(
                logits, negative_owner_ptr, offs_n, offs_m, num_keys, num_columns,
                hard_negative_weight, SHARE_NEGATIVES,
            )  # fmt: skip
        has_own_or_edge = holds_own_or_edge(
            first_row, first_column, label_offset, num_queries, num_columns, BLOCK_N, BLOCK_M
        )
        if has_own_or_edge:
            inside = in_range_n[:, None] & in_range_m[None, :]
            is_own = own_mask(offs_n, offs_m, label_offset, num_keys)
            logits = tl.where(inside & ~is_own, logits, float("-inf"))
        if HAS_IDS:
            is_equal = equal_ids(
                query_ids_ptr, column_ids_ptr, offs_n, offs_m, num_queries, num_ids
            )
            if MULTI_POSITIVE:
                is_equal = is_equal & (logits > float("-inf"))
            else:
                logits = tl.where(is_equal, float("-inf"), logits)
        row_coefficient = tl.load(row_ptrs, mask=in_range_n, other=0.0)[:, None]
        column_coefficient = tl.load(column_ptrs, mask=in_range_m, other=0.0)[None, :]
        if CONSTANT_SHIFT:
            # The coefficients hold exp(shift - rest): one exponential for both directions.
            gradient = tl.exp2(logits - shift * LOG2_E)
            if SYMMETRIC:
                gradient *= row_coefficient + column_coefficient
            else:
                gradient *= row_coefficient
        else:
            rest = tl.load(row_ptrs + row_size, mask=in_range_n, other=0.0)[:, None]
            gradient = row_coefficient * tl.exp2(logits - rest)
            if SYMMETRIC:
                rest = tl.load(column_ptrs + column_size, mask=in_range_m, other=0.0)[None, :]
                gradient += column_coefficient * tl.exp2(logits - rest)
        if MULTI_POSITIVE:
            coefficient = tl.load(row_ptrs + 3 * row_size, mask=in_range_n, other=0.0)[:, None]
            if SYMMETRIC:
                coefficient += tl.load(column_ptrs + 2 * column_size, mask=in_range_m, other=0.0)[
                    None, :
                ]
            gradient = tl.where(is_equal, gradient + coefficient, gradient)
        if NEED_SCALE_GRAD:
            # The own column's part is added outside, from the own logits themselves.
            plain = unweighted if HAS_OWNERS else logits
            products = gradient * tl.where(logits > float("-inf"), plain, 0.0)
            tile_row = (first_row // BLOCK_N).to(tl.int64)
            index = tile_row * tl.cdiv(num_columns, BLOCK_M) + first_column // BLOCK_M
            tl.store(scale_partial_ptr + index, tl.sum(products))
        if has_own_or_edge:
            is_own = own_mask(offs_n, offs_m, label_offset, num_keys)
            own = tl.load(row_ptrs + 2 * row_size, mask=in_range_n, other=0.0)[:, None]
            gradient = tl.where(is_own, own, gradient)
        if NORMALIZE:
            gradient *= tl.load(row_ptrs + 4 * row_size, mask=in_range_n, other=0.0)[:, None]
            gradient *= tl.load(column_ptrs + 3 * column_size, mask=in_range_m, other=0.0)[None, :]
        rows = (offs_n - first_chunk_row).to(tl.int64)[:, None]
        ptrs = gradient_ptr + rows * stride_gn + (offs_m - first_chunk_column)[None, :]
        mask = in_range_n[:, None] & in_range_m[None, :]
        tl.store(ptrs, gradient.to(gradient_ptr.dtype.element_ty), mask=mask)


class _Vectors(NamedTuple):
    """What the tile kernel and the scaling after the products read, one number per line."""

    rows: Tensor  # (5, N)
    columns: Tensor  # (4, M)
    coefficient_factor: Tensor  # () what all coefficients were multiplied by
    row_fold_factor: Tensor  # () what the rows' inverse norms were multiplied by
    column_fold_factor: Tensor  # ()


def contrastive_bwd(
    query: Tensor,
    columns: Tensor,
    problem: ContrastiveProblem,
    sums: ContrastiveSums,
    grads: ContrastiveGrads,
    need_scale_grad: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of (query (N, D), columns (M, D), scale ()), the first two in their dtype."""
    norms = (sums.query_inverse_norm, sums.column_inverse_norm) if problem.normalize else None
    operands = TileOperands.make(query, columns, problem, norms)
    tiles = contrastive_tiles(query, problem)
    num_queries, num_columns = query.shape[0], columns.shape[0]
    vectors = _prepare_vectors(operands, sums, grads)
    row_norm, column_norm = norms or (None, None)
    row_fold, column_fold = vectors.rows[4], vectors.columns[3]
    unscale = problem.scale / vectors.coefficient_factor

    def empty(*shape: int, dtype: torch.dtype = problem.scale.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=query.device)

    grad_query, grad_columns = empty(*query.shape, dtype=query.dtype), empty(0)
    columns_sum = empty(*operands.columns.shape)
    gradient = empty(min(num_queries, CHUNK), min(num_columns, CHUNK), dtype=query.dtype)
    rows_sum = empty(gradient.shape[0], operands.query.shape[1])
    scale_partial = empty(
        triton.cdiv(num_queries, tiles.block_n), triton.cdiv(num_columns, tiles.block_m)
    )
    with device_guard(query):
        for rows in _chunks(num_queries):
            for span in _chunks(num_columns):
                tile = gradient[: rows.stop - rows.start, : span.stop - span.start]
                _launch(operands, vectors, rows, span, tile, scale_partial, need_scale_grad)
                _accumulate(rows_sum[: tile.shape[0]], tile, operands.columns[span], span.start)
                _accumulate(columns_sum[span], tile.T, operands.query[rows], rows.start)
            scale_rows(
                rows_sum,
                operands.query[rows],
                None if row_norm is None else row_norm[rows],
                None if row_norm is None else row_fold[rows],
                unscale / vectors.column_fold_factor,
                grad_query[rows],
            )
        grad_columns = empty(*columns.shape, dtype=columns.dtype)
        scale_rows(
            columns_sum,
            operands.columns,
            column_norm,
            None if column_norm is None else column_fold,
            unscale / vectors.row_fold_factor,
            grad_columns,
        )
    if not need_scale_grad:
        return grad_query, grad_columns, torch.zeros_like(problem.scale)
    rest = scale_partial.sum() * LN_2.value / vectors.coefficient_factor
    return grad_query, grad_columns, (rest + (grads.own * sums.own).sum()) / problem.scale


def _chunks(size: int) -> list[slice]:
    return [slice(first, min(first + CHUNK, size)) for first in range(0, size, CHUNK)]


def _launch(
    operands: TileOperands,
    vectors: _Vectors,
    rows: slice,
    span: slice,
    gradient: Tensor,
    scale_partial: Tensor,
    need_scale_grad: bool,
) -> None:
    """Fills gradient (chunk rows, chunk columns) with H."""
    tiles = contrastive_tiles(operands.query, operands.problem)
    num_tiles_m = triton.cdiv(gradient.shape[1], tiles.block_m)
    num_tiles = triton.cdiv(gradient.shape[0], tiles.block_n) * num_tiles_m
    _contrastive_bwd_kernel[(min(num_tiles, program_slots(operands.query)),)](
        **operands.tile_arguments(tiles),
        **operands.rule_arguments(),
        row_vectors_ptr=vectors.rows,
        column_vectors_ptr=vectors.columns,
        gradient_ptr=gradient,
        scale_partial_ptr=scale_partial,
        stride_gn=gradient.stride(0),
        first_chunk_row=rows.start,
        first_chunk_column=span.start,
        num_tiles_m=num_tiles_m,
        num_tiles=num_tiles,
        NEED_SCALE_GRAD=need_scale_grad,
    )


def _accumulate(total: Tensor, left: Tensor, right: Tensor, position: int) -> None:
    """total += left @ right, float32 sums of 16-bit operands; the first product overwrites."""
    is_first = position == 0
    if left.dtype == total.dtype:
        torch.addmm(total, left, right, beta=0 if is_first else 1, out=total)
    elif left.is_cuda:
        torch.addmm(total, left, right, torch.float32, beta=0 if is_first else 1, out=total)
    else:  # the interpreter: PyTorch has no mixed product on the CPU
        torch.addmm(total, left.float(), right.float(), beta=0 if is_first else 1, out=total)


def _prepare_vectors(
    operands: TileOperands, sums: ContrastiveSums, grads: ContrastiveGrads
) -> _Vectors:
    problem = operands.problem
    is_half = operands.query.dtype == torch.float16
    one = torch.ones_like(problem.scale)
    coefficient_factor = one
    if is_half:
        largest = torch.stack([part.abs().amax() for part in grads if part.numel()]).amax()
        coefficient_factor = FLOAT16_LARGEST / torch.where(largest > 0, largest, 1.0)
    num_queries, num_columns = operands.query.shape[0], operands.columns.shape[0]
    rows = torch.zeros((5, num_queries), dtype=one.dtype, device=one.device)
    columns = torch.zeros((4, num_columns), dtype=one.dtype, device=one.device)
    num_keys = problem.num_keys
    rows[0], rows[1] = _coefficient_and_rest(grads.row_rest, sums.row_rest, problem.shift)
    rows[2] = grads.own
    if problem.symmetric:
        columns[0, :num_keys], columns[1, :num_keys] = _coefficient_and_rest(
            grads.column_rest, sums.column_rest, problem.shift
        )
    if problem.multi_positive:
        rows[3] = grads.row_positive_sum
        if problem.symmetric:
            columns[2, :num_keys] = grads.column_positive_sum
    if is_half:
        # The rest (index 1) is no coefficient.
        rows[[0, 2, 3]] *= coefficient_factor
        columns[[0, 2]] *= coefficient_factor
    row_factor = column_factor = one
    if problem.normalize:
        rows[4], row_factor = _fold(operands.query_inverse_norm, is_half, one)
        columns[3], column_factor = _fold(operands.column_inverse_norm, is_half, one)
    return _Vectors(rows, columns, coefficient_factor, row_factor, column_factor)


def _coefficient_and_rest(
    coefficient: Tensor, rest: Tensor, shift: float | None
) -> tuple[Tensor, Tensor]:
    """(coefficient, rest in log2 units); with a shift the coefficient takes exp(shift - rest)."""
    # Without a rest every logit is -inf and its exponential 0; -inf - -inf would be NaN.
    rest = rest.masked_fill(rest == -torch.inf, torch.inf)
    if shift is not None:
        coefficient = coefficient * (shift - rest).exp_()
    return coefficient, rest * LOG2_E.value


def _fold(inverse_norm: Tensor, is_half: bool, one: Tensor) -> tuple[Tensor, Tensor]:
    """(inverse norms as folded into H, the factor they were multiplied by)."""
    if not is_half:
        return inverse_norm, one
    # A float16 row below the floor is all zero: its fold multiplies nothing, so 1 will do.
    is_zero = inverse_norm >= 1 / NORM_FLOOR
    factor = inverse_norm.masked_fill(is_zero, 0).amax()
    factor = torch.where(factor > 0, factor, 1.0).reciprocal()
    return (inverse_norm * factor).masked_fill(is_zero, 1.0), factor
