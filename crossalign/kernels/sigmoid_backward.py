"""Gradients of the pairwise sigmoid loss by recomputed logits: a tile kernel and matrix products.

    G[i, j] = d loss / d z[i, j] = g_i * -y sigmoid(-y z[i, j])
    grad_query^ = scale * G @ key^      grad_key^ = scale * G.T @ query^

The kernel writes a chunk of G, rounded to the input dtype, to a bounded workspace; the library's
matrix product multiplies it with the operands and accumulates in float32. In bfloat16 and float32
the chunk holds G * rq_i * rk_j and the operands are read as they are, so that normalizing costs no
copy. In float16, whose range is narrow, it holds G scaled to a largest of 2^13 and the operands are
normalized copies. The own keys' part, the largest of each row, is added in float32.

Per chunk of CHUNK x CHUNK: writes G once, reads it twice. 6 N M D operations, less what needs no
gradient.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
from torch import Tensor

from crossalign.contrastive.problem import GradientNeeds, label_range
from crossalign.contrastive.sigmoid.problem import SigmoidProblem, SigmoidSums, empty_gradients
from crossalign.kernels.contrastive_logits import LN_2
from crossalign.kernels.launch import INTERPRETED, device_guard
from crossalign.kernels.operands import TileOperands
from crossalign.kernels.positive_logits import positive_logits
from crossalign.kernels.sigmoid_gradient import sigmoid_gradient_tiles
from crossalign.kernels.tiles import Tiles, backward_tiles
from crossalign.precision import NORM_FLOOR, accumulator

# Rows and keys of one chunk of G: large enough for the matrix products to run at full rate; 128 MiB
# in 16 bits.
CHUNK = 64 if INTERPRETED else 8192
FLOAT16_LARGEST = 2.0**13


class _Side(NamedTuple):
    """Queries or keys: what the products read, and how their sums become gradients."""

    x: Tensor  # (n, D)
    inverse_norm: Tensor | None  # (n,)
    matrix: Tensor  # (n, D or more) operand of the products
    fold: Tensor | None  # (n,) what G is multiplied with for the norms of this side

    def unit(self, rows: slice) -> Tensor:
        """(rows, D) as the logits are made of, in the accumulator dtype."""
        x = self.x[rows].to(accumulator(self.x.dtype))
        return x if self.inverse_norm is None else x * self.inverse_norm[rows, None]

    def gradient(self, total: Tensor, factor: Tensor, rows: slice, own: Tensor) -> Tensor:
        """(rows, D): total: sums of the products; factor: what they lack; own: (rows, D)."""
        grad_unit = total[:, : self.x.shape[1]] * factor
        if self.fold is not None:
            grad_unit /= self.fold[rows, None]
        grad_unit += own
        if self.inverse_norm is None:
            return grad_unit
        unit, inverse_norm = self.unit(rows), self.inverse_norm[rows, None]
        # Below the floor the norm is a constant, and nothing is projected away.
        along = (
            (unit * grad_unit).sum(1, keepdim=True).masked_fill(inverse_norm >= 1 / NORM_FLOOR, 0)
        )
        return (grad_unit - unit * along) * inverse_norm


def _side(x: Tensor, readable: Tensor, inverse_norm: Tensor | None) -> _Side:
    if inverse_norm is None or x.dtype != torch.float16:
        return _Side(x, inverse_norm, readable, inverse_norm)
    return _Side(x, inverse_norm, (readable * inverse_norm[:, None]).to(x.dtype), None)


class _OwnKeys(NamedTuple):
    """The pairs of a query and its own key that are here, and their share of the gradients."""

    first_row: int
    first_key: int
    num_pairs: int
    grad: Tensor  # (count,) d loss / d z
    logit: Tensor  # (count,) z - bias


def sigmoid_bwd(
    query: Tensor,
    key: Tensor,
    problem: SigmoidProblem,
    sums: SigmoidSums,
    grad_terms: Tensor,
    needs: GradientNeeds,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of (query (N, D), key (M, D), scale (), bias ()); unneeded ones have no rows."""
    logits = problem.logits(key.shape[0])
    norms = (sums.query_inverse_norm, sums.key_inverse_norm) if problem.normalize else None
    operands = TileOperands.make(query, key, logits, norms)
    tiles = backward_tiles(query, logits)
    queries, keys = (
        _side(x, readable, norm)
        for x, readable, norm in zip(
            (query, key), (operands.query, operands.candidates), norms or (None, None), strict=True
        )
    )
    factor = _largest_factor(query, grad_terms)
    grad_query, grad_key = empty_gradients(query, key, needs)
    wide = problem.scale
    # Rows of a multiple of 16 elements: a descriptor asks for whole 16-byte units.
    width = min(-(-key.shape[0] // 16) * 16, CHUNK)
    workspace = query.new_empty(min(query.shape[0], CHUNK), width)
    query_sum = wide.new_empty(workspace.shape[0] if needs.query else 0, operands.query.shape[1])
    key_sum = wide.new_empty(grad_key.shape[0], operands.query.shape[1])
    partial = None
    if needs.scale:
        num_tiles = [triton.cdiv(len(x), b) for x, b in ((query, tiles[0]), (key, tiles[1]))]
        partial = wide.new_empty(2, *num_tiles)
    with device_guard(query):
        own = _own_keys(operands, tiles, problem, grad_terms)
        scaled_terms = grad_terms * factor
        for rows in _chunks(query.shape[0]):
            for span in _chunks(key.shape[0]):
                chunk = workspace[: rows.stop - rows.start, : span.stop - span.start]
                sigmoid_gradient_tiles(
                    operands, problem.bias, scaled_terms, (queries.fold, keys.fold), tiles, rows,
                    span, chunk, partial,
                )  # fmt: skip
                if needs.query:
                    _add_product(query_sum[: len(chunk)], chunk, keys.matrix[span], span.start)
                if needs.candidates:
                    _add_product(key_sum[span], chunk.T, queries.matrix[rows], rows.start)
            if needs.query:
                part = _own_part(own, queries, keys, rows, problem, of_queries=True)
                total = query_sum[: rows.stop - rows.start]
                grad_query[rows] = queries.gradient(total, problem.scale / factor, rows, part)
        for span in _chunks(grad_key.shape[0]):
            part = _own_part(own, queries, keys, span, problem, of_queries=False)
            grad_key[span] = keys.gradient(key_sum[span], problem.scale / factor, span, part)
    return grad_query, grad_key, *_scalar_gradients(partial, own, problem, factor)


def _own_keys(
    operands: TileOperands, tiles: Tiles, problem: SigmoidProblem, grad_terms: Tensor
) -> _OwnKeys:
    first_row, first_key, count = label_range(operands.problem, 0, len(grad_terms))
    here = slice(first_row, first_row + count)
    logit = positive_logits(operands, operands.tile_arguments(tiles))[0][here]
    grad = -grad_terms[here] * torch.sigmoid(-(logit + problem.bias))
    return _OwnKeys(first_row, first_key, count, grad, logit)


def _own_part(
    own: _OwnKeys,
    queries: _Side,
    keys: _Side,
    rows: slice,
    problem: SigmoidProblem,
    *,
    of_queries: bool,
) -> Tensor:
    """(rows, D): what the own keys, or of keys their queries, add to the gradient of unit rows."""
    first, other_first = own.first_row, own.first_key
    other = keys if of_queries else queries
    if not of_queries:
        first, other_first = other_first, first
    part = problem.scale.new_zeros(rows.stop - rows.start, other.x.shape[1])
    start, stop = max(rows.start, first), min(rows.stop, first + own.num_pairs)
    if start < stop:
        shift = other_first - first
        grad = own.grad[start - first : stop - first, None] * problem.scale
        unit = other.unit(slice(start + shift, stop + shift))
        part[start - rows.start : stop - rows.start] = grad * unit
    return part


def _scalar_gradients(
    partial: Tensor | None, own: _OwnKeys, problem: SigmoidProblem, factor: Tensor
) -> tuple[Tensor, Tensor]:
    """() and (): sums of G * <q^, k^> and of G."""
    if partial is None:
        return torch.zeros_like(problem.scale), torch.zeros_like(problem.bias)
    # Positives pull the bias up and negatives down: sums that nearly cancel, hence float64.
    of_logits, of_bias = partial.sum((1, 2), dtype=torch.float64) / factor
    of_logits = of_logits * LN_2.value + (own.grad * own.logit).sum(dtype=torch.float64)
    of_bias = of_bias + own.grad.sum(dtype=torch.float64)
    dtype = problem.scale.dtype
    return (of_logits / problem.scale).to(dtype), of_bias.to(dtype)


def _largest_factor(query: Tensor, grad_terms: Tensor) -> Tensor:
    """() what keeps a float16 G in range; 1 for the other dtypes."""
    one = torch.ones_like(grad_terms[:1]).sum()
    if query.dtype != torch.float16:
        return one
    largest = grad_terms.abs().amax()
    return FLOAT16_LARGEST / torch.where(largest > 0, largest, one)


def _chunks(size: int) -> list[slice]:
    return [slice(first, min(first + CHUNK, size)) for first in range(0, size, CHUNK)]


def _add_product(total: Tensor, left: Tensor, right: Tensor, position: int) -> None:
    """total += left @ right, float32 sums of 16-bit operands; the first product overwrites."""
    # With another shape PyTorch would resize a view, and the sum would go nowhere.
    assert total.shape == (left.shape[0], right.shape[1]), (total.shape, left.shape, right.shape)
    beta = 0 if position == 0 else 1
    if left.dtype == total.dtype:
        torch.addmm(total, left, right, beta=beta, out=total)
    elif left.is_cuda:
        torch.addmm(total, left, right, torch.float32, beta=beta, out=total)
    else:  # the interpreter: PyTorch has no mixed product on the CPU
        torch.addmm(total, left.float(), right.float(), beta=beta, out=total)
