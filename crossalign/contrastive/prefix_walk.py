"""The losses of all prefixes of the embeddings in one walk over their features, on a CPU.

    S_p = S_(p-1) + Q[:, d_(p-1):d_p] @ K[:, d_(p-1):d_p].T      z_p = scale * S_p * rq_p * rk_p
    grad_Q[:, d_(p-1):d_p] = (H_p + H_(p+1) + ...) @ K[:, d_(p-1):d_p], H_p = d loss / d S_p

Each prefix has norms of its own, so these are factors of logits and not of operands: more passes
over the logits than a loss of its own takes, but no feature is multiplied for two prefixes. One
direction, a mean or a sum, with a bound of the logits; all else takes a pass for each prefix.

Shape suffixes: R rows of a chunk, N queries, M candidates, T of a tile.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from crossalign.contrastive.blocks import LARGEST_BOUND
from crossalign.contrastive.chunked import chunk, exponentials, torch_logits
from crossalign.contrastive.chunked.norms import inverse_norms
from crossalign.contrastive.known_gradients import with_gradients
from crossalign.contrastive.ops import refuse_twice
from crossalign.contrastive.options import LossArguments, LossOptions
from crossalign.contrastive.sides import joined
from crossalign.contrastive.terms import SOFTPLUS_THRESHOLD
from crossalign.operators.transforms import ops_are_watched, transforms_are_active
from crossalign.precision import NORM_FLOOR, accumulator, without_autocast

# What the further passes over a prefix's logits cost, as features of a product (benchmarks/LOG.md).
PASSES_IN_FEATURES = 200
_EXTRAS = LossArguments._fields[LossArguments._fields.index("ids") : -1]


def prefix_walk_takes(arguments: LossArguments, dims: Sequence[int]) -> bool:
    """Whether the walk has what is asked for, and saves more than it costs."""
    query, options = arguments.query, arguments.options
    sides = (query, arguments.key, arguments.negatives)
    return (
        query.device.type == "cpu"
        and query.shape[0] > 1
        and not isinstance(arguments.temperature, Tensor)
        and 1 / float(arguments.temperature) < LARGEST_BOUND
        and all(getattr(arguments, name) is None for name in _EXTRAS)
        and options.reduction != "none"
        and options.backend != "triton"
        and not options.is_debiased
        and options._replace(reduction="mean", backend="auto") == LossOptions()
        and torch.is_grad_enabled()
        and any(x is not None and x.requires_grad for x in sides)
        and not ops_are_watched()
        and not transforms_are_active()
        and 3 * (sum(dims) - max(dims)) > PASSES_IN_FEATURES * len(dims)
    )


def prefix_walk_loss(
    arguments: LossArguments, dims: Sequence[int], weights: Sequence[float]
) -> Tensor:
    """() the weighted sum over prefixes, differentiable in the embeddings. arguments: checked."""
    query, key, negatives = arguments.query, arguments.key, arguments.negatives
    share = 1 / len(query) if arguments.options.reduction == "mean" else 1.0
    with torch.no_grad(), without_autocast("cpu"):
        dtype = accumulator(query.dtype)
        walk = _Walk(query.to(dtype), joined(key, negatives).to(dtype))
        walk.add_prefixes(dims, weights, 1 / float(arguments.temperature), share)
        loss, of_query, of_candidates = walk.run()
    gradients = [of_query, of_candidates[: len(key)], of_candidates[len(key) :]]
    sides = [query, key, negatives]
    given = [
        gradient if x is not None and x.requires_grad else None
        for x, gradient in zip(sides, gradients, strict=True)
    ]
    return with_gradients(loss, sides, given, refuse_twice)


class _Prefix(NamedTuple):
    features: slice  # those that the next shorter prefix does not have
    row_factor: Tensor  # (N, 1) scale / norm
    column_factor: Tensor  # (M,) 1 / norm
    is_projected: tuple[Tensor, Tensor]  # (N,), (M,) 1 / norm^2; 0 where the norm is constant
    share: float  # of each row's term in the loss


class _Walk:
    def __init__(self, query_ND: Tensor, candidates_MD: Tensor) -> None:
        self.query, self.candidates = query_ND, candidates_MD
        self.prefixes: list[_Prefix] = []

    def add_prefixes(
        self, dims: Sequence[int], weights: Sequence[float], scale: float, share: float
    ) -> None:
        start = 0
        for dim, weight in sorted(zip(dims, weights, strict=True)):
            norms = [inverse_norms(side[:, :dim]) for side in (self.query, self.candidates)]
            projected = [x.square().masked_fill(x >= 1 / NORM_FLOOR, 0) for x in norms]
            self.prefixes.append(
                _Prefix(
                    slice(start, dim),
                    norms[0][:, None] * scale,
                    norms[1],
                    (projected[0], projected[1]),
                    share * weight,
                )
            )
            start = dim

    def run(self) -> tuple[Tensor, Tensor, Tensor]:
        """The loss, and its gradients by queries and candidates."""
        query, candidates = self.query, self.candidates
        num_queries, num_candidates = len(query), len(candidates)
        budget = torch_logits.CPU_CHUNK_LOGITS + chunk.KEPT_BYTES // query.itemsize
        step = budget // (num_candidates * (len(self.prefixes) + 1))
        step = min(num_queries, max(torch_logits.MIN_ROWS, step))
        rooms = query.new_empty(len(self.prefixes) + 1, num_candidates, step).transpose(1, 2)
        of_query, of_candidates = torch.zeros_like(query), torch.zeros_like(candidates)
        column_dots = query.new_zeros(len(self.prefixes), num_candidates)
        loss = query.new_zeros(())
        for first in range(0, num_queries, step):
            rows = slice(first, min(first + step, num_queries))
            products_RM, *grads = rooms[:, : rows.stop - first]
            row_dots = query.new_zeros(len(grads), rows.stop - first)
            for prefix, grad_RM, *dots in zip(
                self.prefixes, grads, row_dots, column_dots, strict=True
            ):
                left, right = query[rows, prefix.features], candidates[:, prefix.features]
                beta = 0 if prefix.features.start == 0 else 1
                torch.addmm(products_RM, left, right.T, beta=beta, out=products_RM)
                loss += self._gradient(prefix, rows, products_RM, grad_RM, *dots)
            self._walk_back(rows, grads, row_dots, of_query, of_candidates)
        along = torch.zeros_like(column_dots[0])
        for prefix, dots_M in zip(self.prefixes[::-1], column_dots.flip(0), strict=True):
            along += dots_M * prefix.is_projected[1]
            part = slice(None), prefix.features
            of_candidates[part] -= candidates[part] * along[:, None]
        return loss, of_query, of_candidates

    def _gradient(
        self,
        prefix: _Prefix,
        rows: slice,
        products_RM: Tensor,
        grad_RM: Tensor,
        row_dots_R: Tensor,
        column_dots_M: Tensor,
    ) -> Tensor:
        """() the terms of the rows; fills grad_RM with d loss / d products, adds products times
        those to the sums of rows and columns."""
        row_factor, labels = prefix.row_factor[rows], products_RM[:, rows].diagonal()
        label_factor = row_factor[:, 0] * prefix.column_factor[rows]
        positive, rest = labels * label_factor, torch.zeros_like(row_dots_R)
        own = grad_RM[:, rows].diagonal()
        tiles = _tiles(products_RM)
        for columns in tiles:
            tile_RT = grad_RM[:, columns]
            torch.mul(products_RM[:, columns], row_factor, out=tile_RT)
            tile_RT.mul_(prefix.column_factor[columns]).exp_()
            own[max(0, columns.start - rows.start) : max(0, columns.stop - rows.start)] = 0
            rest += tile_RT.sum(1)
        excess = rest.log() - positive
        by_rest = torch.sigmoid(excess).mul_(prefix.share)
        coefficient = (by_rest / rest)[:, None] * row_factor
        for columns in tiles:
            tile_RT = grad_RM[:, columns]
            tile_RT.mul_(coefficient).mul_(prefix.column_factor[columns])
            dots_RT = tile_RT * products_RM[:, columns]
            row_dots_R += dots_RT.sum(1)
            column_dots_M[columns] += dots_RT.sum(0)
        own.copy_(-by_rest * label_factor)
        row_dots_R -= by_rest * positive
        column_dots_M[rows] -= by_rest * positive
        return F.softplus(excess, threshold=SOFTPLUS_THRESHOLD).sum().mul_(prefix.share)

    def _walk_back(
        self,
        rows: slice,
        grads: Sequence[Tensor],
        row_dots: Tensor,
        of_query: Tensor,
        of_candidates: Tensor,
    ) -> None:
        """From the longest prefix to the shortest, adding up what flows through the features."""
        along = torch.zeros_like(row_dots[0])
        for index in reversed(range(len(grads))):
            prefix, grad_RM = self.prefixes[index], grads[index]
            if index + 1 < len(grads):
                grad_RM.add_(grads[index + 1])
            along += row_dots[index] * prefix.is_projected[0][rows]
            part = rows, prefix.features
            of_query[part] = grad_RM @ self.candidates[:, prefix.features]
            of_query[part] -= self.query[part] * along[:, None]
            of_candidates[:, prefix.features] += grad_RM.T @ self.query[part]


def _tiles(logits_RM: Tensor) -> list[slice]:
    """Columns whose logits stay in a core's cache."""
    width = max(1, exponentials.TILE_LOGITS * torch.get_num_threads() // len(logits_RM))
    num_columns = logits_RM.shape[1]
    return [slice(first, first + width) for first in range(0, num_columns, width)]
