"""Gradients of the contrastive sums by recomputed logits: a tile kernel and matrix products.

    G[i, j] = d loss / d z[i, j] = a_i e^z + b_j e^z (off the positive), grad_positive_logit[i] on
    it
    grad_query^ = scale * G @ candidates^      grad_candidates^ = scale * G.T @ query^

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

from crossalign.contrastive.problem import (
    ContrastiveGrads,
    ContrastiveProblem,
    ContrastiveSums,
    label_range,
)
from crossalign.kernels.contrastive_coefficients import coefficients
from crossalign.kernels.contrastive_gradient import gradient_tiles
from crossalign.kernels.contrastive_logits import LN_2
from crossalign.kernels.launch import INTERPRETED, device_guard
from crossalign.kernels.operands import TileOperands
from crossalign.kernels.row_norms import scale_rows
from crossalign.kernels.tiles import backward_tiles

# Rows and candidates of one chunk of H: large enough for the matrix products to run at full rate
# and
# for their float32 accumulators to be read and written rarely; 128 MiB in 16 bits.
CHUNK = 64 if INTERPRETED else 8192
# A logit's gradient is at most four times the largest coefficient: below float16's 65,504.
FLOAT16_LARGEST = 2.0**13
FLOAT16_ROW_NORM = 2.0**8


def contrastive_bwd(
    query: Tensor,
    candidates: Tensor,
    problem: ContrastiveProblem,
    sums: ContrastiveSums,
    grads: ContrastiveGrads,
    need_scale_grad: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of (query (N, D), candidates (M, D), scale ()), the first two in their dtype."""
    num_queries, num_candidates = query.shape[0], candidates.shape[0]
    no_scale_grad = torch.zeros_like(problem.scale)
    norms = (sums.query_inverse_norm, sums.candidate_inverse_norm) if problem.normalize else None
    operands = TileOperands.make(query, candidates, problem, norms)
    tiles = backward_tiles(query, problem)
    row_norm, column_norm = norms or (None, None)
    query_matrix, row_fold = _fold(operands.query, row_norm)
    candidate_matrix, column_fold = _fold(operands.candidates, column_norm)
    factor = _coefficient_factor(query, grads)
    unscale = problem.scale if factor is None else problem.scale / factor
    if problem.normalize and query.dtype == torch.float16:
        unscale = unscale / FLOAT16_ROW_NORM

    def empty(*shape: int, dtype: torch.dtype = problem.scale.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=query.device)

    grad_query, grad_candidates = (empty(*x.shape, dtype=x.dtype) for x in (query, candidates))
    candidates_sum = empty(*operands.candidates.shape)
    # Rows of a multiple of 16 elements: a descriptor asks for whole 16-byte units, and for strides
    # that 16 does not divide Triton would compile again.
    gradient = empty(
        min(num_queries, CHUNK), min(-(-num_candidates // 16) * 16, CHUNK), dtype=query.dtype
    )
    rows_sum = empty(gradient.shape[0], operands.query.shape[1])
    scale_partial = empty(
        triton.cdiv(num_queries, tiles.block_n), triton.cdiv(num_candidates, tiles.block_m)
    )
    with device_guard(query):
        vectors = coefficients(grads, sums, problem, row_fold, column_fold, num_candidates, factor)
        for rows in _chunks(num_queries):
            for span in _chunks(num_candidates):
                tile = gradient[: rows.stop - rows.start, : span.stop - span.start]
                gradient_tiles(
                    operands, vectors, tiles, rows, span, tile, scale_partial, need_scale_grad
                )
                _accumulate(rows_sum[: tile.shape[0]], tile, candidate_matrix[span], span.start)
                _accumulate(candidates_sum[span], tile.T, query_matrix[rows], rows.start)
            norm, fold = (None if part is None else part[rows] for part in (row_norm, row_fold))
            scale_rows(rows_sum, operands.query[rows], norm, fold, unscale, grad_query[rows])
        scale_rows(
            candidates_sum, operands.candidates, column_norm, column_fold, unscale, grad_candidates
        )
    if not need_scale_grad:
        return grad_query, grad_candidates, no_scale_grad
    return grad_query, grad_candidates, _scale_gradient(problem, sums, grads, scale_partial, factor)


def _scale_gradient(
    problem: ContrastiveProblem,
    sums: ContrastiveSums,
    grads: ContrastiveGrads,
    scale_partial: Tensor,
    factor: Tensor | None,
) -> Tensor:
    """() sum of G * similarity: the tiles' sums, and the positives that are here."""
    # In log2 units, which hold a factor of log2(e) * scale.
    rest: Tensor = scale_partial.sum() * LN_2.value
    if factor is not None:
        rest = rest / factor
    first, _, count = label_range(problem, 0, grads.positive_logit.shape[0])
    here = slice(first, first + count)
    positive_logit = (grads.positive_logit[here] * sums.positive_logit[here]).sum()
    return (positive_logit + rest) / problem.scale


def _chunks(size: int) -> list[slice]:
    return [slice(first, min(first + CHUNK, size)) for first in range(0, size, CHUNK)]


def _accumulate(total: Tensor, left: Tensor, right: Tensor, position: int) -> None:
    """total += left @ right, float32 sums of 16-bit operands; the first product overwrites."""
    # With another shape PyTorch would resize a view, and the sum would go nowhere.
    assert total.shape == (left.shape[0], right.shape[1]), (total.shape, left.shape, right.shape)
    is_first = position == 0
    if left.dtype == total.dtype:
        torch.addmm(total, left, right, beta=0 if is_first else 1, out=total)
    elif left.is_cuda:
        torch.addmm(total, left, right, torch.float32, beta=0 if is_first else 1, out=total)
    else:  # the interpreter: PyTorch has no mixed product on the CPU
        torch.addmm(total, left.float(), right.float(), beta=0 if is_first else 1, out=total)


def _coefficient_factor(query: Tensor, grads: ContrastiveGrads) -> Tensor | None:
    """() what keeps float16 coefficients in range; the other dtypes need none."""
    if query.dtype != torch.float16:
        return None
    largest = torch.stack([part.abs().amax() for part in grads if part.numel()]).amax()
    return FLOAT16_LARGEST / torch.where(largest > 0, largest, 1.0)


def _fold(x: Tensor, inverse_norm: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """(x as the products read it, the part of its inverse norms that H takes)."""
    if inverse_norm is None or x.dtype != torch.float16:
        return x, inverse_norm
    fold, _ = torch.frexp(inverse_norm)
    power_of_two = FLOAT16_ROW_NORM * inverse_norm / fold
    return (x * power_of_two[:, None]).to(x.dtype), fold
