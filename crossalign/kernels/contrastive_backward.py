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

import torch
import triton
from torch import Tensor

from crossalign.contrastive_problem import (
    NORM_FLOOR,
    ContrastiveGrads,
    ContrastiveProblem,
    ContrastiveSums,
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
    tiles = backward_tiles(query, problem, need_scale_grad)
    num_queries, num_columns = query.shape[0], columns.shape[0]
    vectors = _prepare_vectors(operands, sums, grads)
    row_norm, column_norm = norms or (None, None)
    row_fold, column_fold = vectors.rows[4], vectors.columns[3]
    unscale = problem.scale / vectors.coefficient_factor

    def empty(*shape: int, dtype: torch.dtype = problem.scale.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=query.device)

    grad_query, grad_columns = empty(*query.shape, dtype=query.dtype), empty(0)
    columns_sum = empty(*operands.columns.shape)
    # Rows of whole 16-byte units, which a tensor descriptor asks for.
    gradient = empty(
        min(num_queries, CHUNK), min(-(-num_columns // 8) * 8, CHUNK), dtype=query.dtype
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
    # In log2 units, which hold a factor of log2(e) * scale.
    grad_scale = scale_partial.sum() * LN_2.value / (vectors.coefficient_factor * problem.scale)
    return grad_query, grad_columns, grad_scale


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
    operands: TileOperands, sums: ContrastiveSums, grads: ContrastiveGrads
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
    return GradientVectors(rows, columns, coefficient_factor, row_factor, column_factor)


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
