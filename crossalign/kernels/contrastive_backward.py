"""Gradients of the contrastive sums by recomputed logits: a tile kernel and matrix products.

    G[i, j] = d loss / d z[i, j] = a_i e^z + b_j e^z, and grad_positive_logit[i] at the positive
    grad_query^ = scale * G @ candidates^      grad_candidates^ = scale * G.T @ query^

The kernel recomputes a chunk of logits and writes H = G * rq_i * rk_j, rounded to the input dtype
and 0 at the positives, to a bounded workspace; the library's matrix product then multiplies H with
the raw operands in float32 accumulation. Folding both inverse norms into H lets one chunk serve
both products without normalised copies; row_gradients divides each product by its own side's norm
and adds what flows through the positives.

In float16 H is kept within range: coefficients are scaled to a largest of 2^13, and the products
read copies of the operands whose rows are scaled by powers of two to norms of 2^8 to 2^9. H is left
with factors of 1/2 to 1 of the inverse norms; the float32 result is scaled back.

Per chunk of CHUNK x CHUNK: writes H once, reads it twice. 6 N M D operations, 8 N M D with the
forward pass; a side that needs no gradient costs no product and no buffer. The temperature gradient
sums G * similarity in float32 before G is rounded.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from crossalign.contrastive.problem import (
    ContrastiveGrads,
    ContrastiveProblem,
    ContrastiveSums,
    GradientNeeds,
    label_range,
)
from crossalign.kernels.contrastive_coefficients import coefficients
from crossalign.kernels.contrastive_gradient import GradientChunk, gradient_tiles
from crossalign.kernels.contrastive_logits import LN_2
from crossalign.kernels.kept_exponentials import empty_kept, kept_gradient
from crossalign.kernels.launch import INTERPRETED, device_guard
from crossalign.kernels.matrix_products import accumulate
from crossalign.kernels.operands import TileOperands
from crossalign.kernels.row_gradients import row_gradients
from crossalign.kernels.tiles import Tiles, backward_tiles

# Rows and candidates of one chunk of H, 128 MiB in 16 bits: large enough for the matrix products to
# run at full rate and for their float32 accumulators to be read and written rarely.
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
    needs: GradientNeeds,
    kept: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of (query (N, D), wanted candidates (m, D), scale ()); of size 0 if not needed.

    kept: the exponentials, if the forward pass kept them.
    """
    norms = (sums.query_inverse_norm, sums.candidate_inverse_norm) if problem.normalize else None
    operands = TileOperands.make(query, candidates, problem, norms)
    tiles = backward_tiles(query, problem)
    row_norm, column_norm = norms or (None, None)
    query_matrix, row_fold = _fold(operands.query, row_norm)
    candidate_matrix, column_fold = _fold(operands.candidates, column_norm)
    factor = _coefficient_factor(query, grads)
    divisors = (row_fold, column_fold)
    if factor is not None:
        divisors = _float16_divisors(query, candidates, divisors, factor)

    def empty(*shape: int, dtype: torch.dtype = problem.scale.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=query.device)

    num_queries, num_candidates = query.shape[0], candidates.shape[0]
    wanted, width = needs.wanted(num_candidates), operands.query.shape[1]
    chunks = _chunks_of(num_queries, num_candidates, needs, tiles)
    gradient = empty_kept(min(num_queries, CHUNK), min(num_candidates, CHUNK), query)
    sums_of = _ProductSums(
        empty(min(num_queries, CHUNK) if needs.query else 0, width),
        empty(wanted.stop - wanted.start, width),
        wanted,
    )
    dtype = needs.gradient_dtype(query.dtype)
    grad_query = empty(num_queries if needs.query else 0, query.shape[1], dtype=dtype)
    grad_candidates = empty(len(sums_of.candidates), query.shape[1], dtype=dtype)
    num_partials = sum(chunk.num_tiles(tiles) for row in chunks for chunk in row)
    scale_partial = empty(num_partials) if needs.scale else None
    none = slice(0, 0)
    with device_guard(query):
        vectors = coefficients(grads, sums, problem, row_fold, column_fold, num_candidates, factor)
        for rows, row in zip(_pieces(num_queries), chunks, strict=True):
            for chunk in row:
                if kept is not None and scale_partial is None:
                    kept_gradient(kept, vectors, chunk, gradient, problem)
                else:
                    gradient_tiles(operands, vectors, tiles, chunk, gradient, scale_partial)
                sums_of.add(chunk, gradient, query_matrix, candidate_matrix)
            row_gradients(
                operands,
                divisors,
                grads.positive_logit,
                (sums_of.query, sums_of.candidates),
                (grad_query, grad_candidates),
                rows if needs.query else none,
                wanted if rows.stop == num_queries else none,
            )
    if scale_partial is None:
        return grad_query, grad_candidates, problem.scale.new_empty(0)
    return grad_query, grad_candidates, _scale_gradient(problem, sums, grads, scale_partial, factor)


def _chunks_of(
    num_queries: int, num_candidates: int, needs: GradientNeeds, tiles: Tiles
) -> list[list[GradientChunk]]:
    """By chunks of rows, those whose gradient matrix something needs."""
    wanted = needs.wanted(num_candidates)
    columns = _pieces(num_candidates)
    if not (needs.query or needs.scale):
        columns = [part for part in columns if _overlap(part, wanted)]
    chunks: list[list[GradientChunk]] = []
    first_partial = 0
    for rows in _pieces(num_queries):
        chunks.append([])
        for part in columns:
            chunk = GradientChunk(rows, part, first_partial)
            first_partial += chunk.num_tiles(tiles)
            chunks[-1].append(chunk)
    return chunks


def _pieces(size: int) -> list[slice]:
    return [slice(first, min(first + CHUNK, size)) for first in range(0, size, CHUNK)]


def _overlap(part: slice, wanted: slice) -> range:
    return range(max(part.start, wanted.start), min(part.stop, wanted.stop))


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


class _ProductSums(NamedTuple):
    """Sums of H @ candidates for one chunk of rows, and of H.T @ query for wanted candidates."""

    query: Tensor  # (rows of a chunk, or 0, D) accumulator dtype
    candidates: Tensor  # (m, D)
    wanted: slice

    def add(
        self, chunk: GradientChunk, gradient: Tensor, query: Tensor, candidates: Tensor
    ) -> None:
        """gradient: whose first rows and columns are H of the chunk; query, candidates: (N, D) and
        (M, D), the operands."""
        rows, columns = chunk.rows, chunk.columns
        num_rows = rows.stop - rows.start
        if len(self.query):
            tile = gradient[:num_rows, : chunk.num_columns]
            accumulate(self.query[:num_rows], tile, candidates[columns], columns.start == 0)
        if part := _overlap(columns, self.wanted):
            tile = gradient[:num_rows, part.start - columns.start : part.stop - columns.start]
            total = self.candidates[part.start - self.wanted.start : part.stop - self.wanted.start]
            accumulate(total, tile.T, query[rows], rows.start == 0)


def _coefficient_factor(query: Tensor, grads: ContrastiveGrads) -> Tensor | None:
    """() what keeps float16 coefficients in range; the other dtypes need none."""
    if query.dtype != torch.float16:
        return None
    in_matrix = [part for part in grads[1:] if part.numel()]  # all but those of the positives
    largest = torch.stack([part.abs().amax() for part in in_matrix]).amax()
    return FLOAT16_LARGEST / torch.where(largest > 0, largest, 1.0)


def _float16_divisors(
    query: Tensor, candidates: Tensor, folds: tuple[Tensor | None, Tensor | None], factor: Tensor
) -> tuple[Tensor, Tensor]:
    """(N,), (M,): what the sums of the products hold too much."""
    if folds[0] is None or folds[1] is None:
        return factor.expand(query.shape[0]).contiguous(), factor.expand(
            candidates.shape[0]
        ).contiguous()
    return folds[0] * (factor * FLOAT16_ROW_NORM), folds[1] * (factor * FLOAT16_ROW_NORM)


def _fold(x: Tensor, inverse_norm: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """(x as the products read it, the part of its inverse norms that H takes)."""
    if inverse_norm is None or x.dtype != torch.float16:
        return x, inverse_norm
    fold, _ = torch.frexp(inverse_norm)
    power_of_two = FLOAT16_ROW_NORM * inverse_norm / fold
    return (x * power_of_two[:, None]).to(x.dtype), fold
