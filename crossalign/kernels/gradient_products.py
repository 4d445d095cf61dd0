"""Gradients of both sides from a gradient matrix that exists chunk by chunk only.

    grad_query^ = scale * G @ candidates^      grad_candidates^ = scale * G.T @ query^

A kernel of the loss writes a chunk of H = G * rq_i * rk_j, rounded to the input dtype and 0 at the
positives, to a bounded workspace; the library's matrix product then multiplies H with the raw
operands in float32 accumulation. Folding both inverse norms into H lets one chunk serve both
products without normalized copies; row_gradients divides each product by its own side's norm and
adds what flows through the positives.

In float16 H is kept within range: its coefficients are scaled to a largest of 2^13, and the
products read copies of the operands whose rows are scaled by powers of two to norms of 2^8 to 2^9.
H is left with factors of 1/2 to 1 of the inverse norms; the float32 result is scaled back.

Per chunk of CHUNK x CHUNK: writes H once, reads it twice.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from crossalign.contrastive.problem import GradientNeeds
from crossalign.kernels.kept_exponentials import empty_kept
from crossalign.kernels.launch import INTERPRETED
from crossalign.kernels.operands import TileOperands
from crossalign.kernels.row_gradients import row_gradients
from crossalign.kernels.tiles import GradientChunk, Tiles

# Rows and candidates of one chunk of H, 128 MiB in 16 bits: large enough for the matrix products to
# run at full rate and for their float32 accumulators to be read and written rarely.
CHUNK = 64 if INTERPRETED else 8192
FLOAT16_LARGEST = 2.0**13
FLOAT16_ROW_NORM = 2.0**8


class ProductSides(NamedTuple):
    """What the products read, and what of the norms and of a factor H takes in."""

    query: Tensor  # (N, D)
    candidates: Tensor  # (M, D)
    norm_shares: tuple[Tensor | None, Tensor | None]  # (N,), (M,) factors of H
    divisors: tuple[Tensor | None, Tensor | None]  # (N,), (M,): what the products hold too much


def float16_factor(query: Tensor, largest: Callable[[], Tensor]) -> Tensor | None:
    """() what keeps float16 coefficients, of that largest size, in range; the other dtypes need
    none."""
    if query.dtype != torch.float16:
        return None
    size = largest()
    return FLOAT16_LARGEST / torch.where(size > 0, size, 1.0)


def product_sides(operands: TileOperands, factor: Tensor | None) -> ProductSides:
    """factor: () of all coefficients, see float16_factor."""
    norms: tuple[Tensor | None, Tensor | None] = None, None
    if operands.problem.normalize:
        norms = operands.query_inverse_norm, operands.candidate_inverse_norm
    query, row_norm_share = _norm_share(operands.query, norms[0])
    candidates, column_norm_share = _norm_share(operands.candidates, norms[1])
    norm_shares = divisors = (row_norm_share, column_norm_share)
    if factor is not None and row_norm_share is not None and column_norm_share is not None:
        scaled = factor * FLOAT16_ROW_NORM
        divisors = row_norm_share * scaled, column_norm_share * scaled
    elif factor is not None:
        sizes = query.shape[0], candidates.shape[0]
        divisors = factor.expand(sizes[0]).contiguous(), factor.expand(sizes[1]).contiguous()
    return ProductSides(query, candidates, norm_shares, divisors)


def _norm_share(x: Tensor, inverse_norm: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """(x as the products read it, the part of its inverse norms that H takes)."""
    if inverse_norm is None or x.dtype != torch.float16:
        return x, inverse_norm
    norm_share, _ = torch.frexp(inverse_norm)
    power_of_two = FLOAT16_ROW_NORM * inverse_norm / norm_share
    return (x * power_of_two[:, None]).to(x.dtype), norm_share


def chunks_of(operands: TileOperands, needs: GradientNeeds, tiles: Tiles) -> list[GradientChunk]:
    """Those whose gradient matrix something needs, rows first."""
    num_candidates = operands.candidates.shape[0]
    wanted, columns = needs.wanted(num_candidates), _pieces(num_candidates)
    if not (needs.query or needs.scale):
        columns = [part for part in columns if _overlap(part, wanted)]
    chunks: list[GradientChunk] = []
    first_partial = 0
    for rows in _pieces(operands.query.shape[0]):
        for part in columns:
            chunks.append(GradientChunk(rows, part, first_partial))
            first_partial += chunks[-1].num_tiles(tiles)
    return chunks


def gradient_products(
    operands: TileOperands,
    sides: ProductSides,
    chunks: list[GradientChunk],
    grad_positive_logit: Tensor,
    needs: GradientNeeds,
    fill: Callable[[GradientChunk, Tensor], None],
) -> tuple[Tensor, Tensor]:
    """Gradients of (query (N, D), wanted candidates (m, D)), with no row where not needed.

    grad_positive_logit: (N,); fill: writes H of a chunk to a workspace of whole tiles.
    """
    query, problem = operands.query, operands.problem
    num_queries, num_candidates, width = len(query), len(operands.candidates), query.shape[1]
    wanted = needs.wanted(num_candidates)

    def empty(rows: int, columns: int, dtype: torch.dtype = problem.scale.dtype) -> Tensor:
        return torch.empty((rows, columns), dtype=dtype, device=query.device)

    gradient = empty_kept(min(num_queries, CHUNK), min(num_candidates, CHUNK), query)
    sums_of = _ProductSums(
        empty(min(num_queries, CHUNK) if needs.query else 0, width),
        empty(wanted.stop - wanted.start, width),
        wanted,
    )
    num_features, dtype = operands.num_features, needs.gradient_dtype(query.dtype)
    grad_query = empty(num_queries if needs.query else 0, num_features, dtype)
    grad_candidates = empty(len(sums_of.candidates), num_features, dtype)
    none = slice(0, 0)
    for rows in _pieces(num_queries):
        for chunk in chunks:
            if chunk.rows == rows:
                fill(chunk, gradient)
                sums_of.add(chunk, gradient, sides.query, sides.candidates)
        row_gradients(
            operands,
            sides.divisors,
            grad_positive_logit,
            (sums_of.query, sums_of.candidates),
            (grad_query, grad_candidates),
            rows if needs.query else none,
            wanted if rows.stop == num_queries else none,
        )
    return grad_query, grad_candidates


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


def accumulate(total: Tensor, left: Tensor, right: Tensor, is_first: bool) -> None:
    """total += left @ right, float32 sums of 16-bit operands; the first product overwrites."""
    # With another shape PyTorch would resize a view, and the sum would go nowhere.
    assert total.shape == (left.shape[0], right.shape[1]), (total.shape, left.shape, right.shape)
    if left.dtype == total.dtype:
        torch.addmm(total, left, right, beta=0 if is_first else 1, out=total)
    elif left.is_cuda:
        torch.addmm(total, left, right, torch.float32, beta=0 if is_first else 1, out=total)
    else:  # the interpreter: PyTorch has no mixed product on the CPU
        torch.addmm(total, left.float(), right.float(), beta=0 if is_first else 1, out=total)


def _pieces(size: int) -> list[slice]:
    return [slice(first, min(first + CHUNK, size)) for first in range(0, size, CHUNK)]


def _overlap(part: slice, wanted: slice) -> range:
    return range(max(part.start, wanted.start), min(part.stop, wanted.stop))
