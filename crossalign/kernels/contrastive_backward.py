"""Gradients of the contrastive sums by recomputed logits: a tile kernel and matrix products.

    G[i, j] = d loss / d z[i, j] = a_i e^z + b_j e^z (off the own column), grad_own[i] on it
    grad_query^ = scale * G @ columns^      grad_columns^ = scale * G.T @ query^

The kernel recomputes a chunk of logits and writes H = G * rq_i * rk_j, rounded to the input dtype,
to a bounded workspace; the library's matrix product then multiplies H with the raw operands in
float32 accumulation. Folding both inverse norms into H lets one chunk serve both products without
normalised copies; each product is divided by its own side's norm afterwards.

In float16 H is kept within range: coefficients are scaled to a largest of 2^13, and the products
read copies of the operands whose rows are scaled by powers of two to norms of 2^8 to 2^9. H is left
with factors of 1/2 to 1 of the inverse norms; the float32 result is scaled back.

Per chunk of CHUNK x CHUNK: writes H once, reads it twice. 6 N M D operations, 8 N M D with the
forward pass. The temperature gradient sums G * similarity in float32 before G is rounded.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from crossalign.contrastive_problem import (
    ContrastiveGrads,
    ContrastiveProblem,
    ContrastiveSums,
    label_range,
)
from crossalign.kernels.contrastive_gradient import GradientVectors, gradient_tiles
from crossalign.kernels.contrastive_logits import LN_2, LOG2_E
from crossalign.kernels.contrastive_tiles import TileOperands, backward_tiles
from crossalign.kernels.launch import INTERPRETED, device_guard
from crossalign.kernels.row_norms import scale_rows

# Rows and columns of one chunk of H: large enough for the matrix products to run at full rate and
# for their float32 accumulators to be read and written rarely; 128 MiB in 16 bits.
CHUNK = 64 if INTERPRETED else 8192
# A logit's gradient is at most four times the largest coefficient: below float16's 65,504.
FLOAT16_LARGEST = 2.0**13
FLOAT16_ROW_NORM = 2.0**8


def contrastive_bwd(
    query: Tensor,
    columns: Tensor,
    problem: ContrastiveProblem,
    sums: ContrastiveSums,
    grads: ContrastiveGrads,
    need_scale_grad: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of (query (N, D), columns (M, D), scale ()), the first two in their dtype."""
    num_queries, num_columns = query.shape[0], columns.shape[0]
    no_scale_grad = torch.zeros_like(problem.scale)
    if num_queries == 0 or num_columns == 0:
        return query.new_zeros(query.shape), columns.new_zeros(columns.shape), no_scale_grad
    norms = (sums.query_inverse_norm, sums.column_inverse_norm) if problem.normalize else None
    operands = TileOperands.make(query, columns, problem, norms)
    tiles = backward_tiles(query, problem)
    row_norm, column_norm = norms or (None, None)
    query_matrix, row_fold = _fold(operands.query, row_norm)
    column_matrix, column_fold = _fold(operands.columns, column_norm)
    vectors = _prepare_vectors(operands, sums, grads, row_fold, column_fold)
    unscale = problem.scale / vectors.coefficient_factor
    if problem.normalize and query.dtype == torch.float16:
        unscale = unscale / FLOAT16_ROW_NORM

    def empty(*shape: int, dtype: torch.dtype = problem.scale.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=query.device)

    grad_query, grad_columns = (empty(*x.shape, dtype=x.dtype) for x in (query, columns))
    columns_sum = empty(*operands.columns.shape)
    # Rows of a multiple of 16 elements: a descriptor asks for whole 16-byte units, and for strides
    # that 16 does not divide Triton would compile again.
    gradient = empty(
        min(num_queries, CHUNK), min(-(-num_columns // 16) * 16, CHUNK), dtype=query.dtype
    )
    rows_sum = empty(gradient.shape[0], operands.query.shape[1])
    scale_partial = empty(
        triton.cdiv(num_queries, tiles.block_n), triton.cdiv(num_columns, tiles.block_m)
    )
    with device_guard(query):
        for rows in _chunks(num_queries):
            for span in _chunks(num_columns):
                tile = gradient[: rows.stop - rows.start, : span.stop - span.start]
                gradient_tiles(
                    operands, vectors, tiles, rows, span, tile, scale_partial, need_scale_grad
                )
                _accumulate(rows_sum[: tile.shape[0]], tile, column_matrix[span], span.start)
                _accumulate(columns_sum[span], tile.T, query_matrix[rows], rows.start)
            norm, fold = (None if part is None else part[rows] for part in (row_norm, row_fold))
            scale_rows(rows_sum, operands.query[rows], norm, fold, unscale, grad_query[rows])
        scale_rows(columns_sum, operands.columns, column_norm, column_fold, unscale, grad_columns)
    if not need_scale_grad:
        return grad_query, grad_columns, no_scale_grad
    # In log2 units, which hold a factor of log2(e) * scale.
    rest = scale_partial.sum() * LN_2.value / vectors.coefficient_factor
    first, _, count = label_range(problem, 0, num_queries)
    here = slice(first, first + count)
    own = (grads.own[here] * sums.own[here]).sum()
    return grad_query, grad_columns, (own + rest) / problem.scale


def _chunks(size: int) -> list[slice]:
    return [slice(first, min(first + CHUNK, size)) for first in range(0, size, CHUNK)]


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
    operands: TileOperands,
    sums: ContrastiveSums,
    grads: ContrastiveGrads,
    row_fold: Tensor | None,
    column_fold: Tensor | None,
) -> GradientVectors:
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
    is_bounded = problem.bound is not None
    rows[0], rows[1] = _coefficient_and_rest(grads.row_rest, sums.row_rest, is_bounded)
    rows[2] = grads.own
    # exp(z - inf) = 0 for the negatives, which have no column term; exp(z - 0) could overflow.
    columns[1, num_keys:] = torch.inf
    if problem.symmetric:
        columns[0, :num_keys], columns[1, :num_keys] = _coefficient_and_rest(
            grads.column_rest, sums.column_rest, is_bounded
        )
    if problem.multi_positive:
        rows[3] = grads.row_positive_sum
        if problem.symmetric:
            columns[2, :num_keys] = grads.column_positive_sum
    if is_half:
        # One by one: a list of indices would be copied to the GPU, for which the host waits.
        for coefficient in (rows[0], rows[2], rows[3], columns[0], columns[2]):
            coefficient *= coefficient_factor
    if row_fold is not None and column_fold is not None:
        rows[4], columns[3] = row_fold, column_fold
    return GradientVectors(rows, columns, coefficient_factor)


def _coefficient_and_rest(
    coefficient: Tensor, rest: Tensor, is_bounded: bool
) -> tuple[Tensor, Tensor]:
    """(coefficient, rest in log2 units); of bounded logits the coefficient takes exp(-rest)."""
    # Without a rest every logit is -inf and its exponential 0; -inf - -inf would be NaN.
    rest = rest.masked_fill(rest == -torch.inf, torch.inf)
    if is_bounded:
        coefficient = coefficient * (-rest).exp_()
    return coefficient, rest * LOG2_E.value


def _fold(x: Tensor, inverse_norm: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """(x as the products read it, the part of its inverse norms that H takes)."""
    if inverse_norm is None or x.dtype != torch.float16:
        return x, inverse_norm
    fold, _ = torch.frexp(inverse_norm)
    power_of_two = FLOAT16_ROW_NORM * inverse_norm / fold
    return (x * power_of_two[:, None]).to(x.dtype), fold
