"""Pairs of rows given one by one, or by equal labels: their products, and sums of them by row.

Shapes: N rows and R columns, P pairs, D features.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from crossalign.precision import accumulator

_ELEMENTS = 2**24  # of gathered vectors that are held at a time


class ListedPairs:
    """P pairs (row, column), each (P,) integers."""

    def __init__(self, rows: Tensor, columns: Tensor) -> None:
        self.rows, self.columns = rows, columns
        self.count = len(rows)

    def products(self, query: Tensor, other: Tensor) -> Tensor:
        """(P,) dot products, in float32 (float64 of float64).

        The backward gathers the vectors again, a part at a time.
        """
        size = max(1, _ELEMENTS // max(1, query.shape[1]))
        dtype = accumulator(query.dtype)

        def part(rows: Tensor, columns: Tensor) -> Tensor:
            return (query[rows].to(dtype) * other[columns].to(dtype)).sum(1)

        if self.count <= size:
            return part(self.rows, self.columns)
        parts = zip(*(torch.split(each, size) for each in (self.rows, self.columns)), strict=True)
        return torch.cat([checkpoint(part, *each, use_reentrant=False) for each in parts])

    def counts_by_row(self, rows: int) -> Tensor:
        return torch.bincount(self.rows, minlength=rows)

    def sum_by_row(self, values: Tensor, rows: int) -> Tensor:
        """(N,) sums of the values (P,), always added in the same order."""
        order = torch.argsort(self.rows, stable=True)
        return torch.segment_reduce(values[order], "sum", lengths=self.counts_by_row(rows))

    def log_sum_by_row(self, logits: Tensor, rows: int) -> Tensor:
        """(N,) logsumexp of the logits (P,); a row without pairs gets a very low value."""
        highest = logits.detach().new_full((rows,), -torch.inf)
        highest = highest.scatter_reduce(0, self.rows, logits.detach(), "amax")
        highest = highest.clamp_min(torch.finfo(logits.dtype).min / 4)
        total = self.sum_by_row(torch.exp(logits - highest[self.rows]), rows)
        return highest + total.clamp_min(torch.finfo(logits.dtype).tiny).log()

    def without_repeats(self, columns: int) -> ListedPairs:
        places = torch.unique(self.rows * columns + self.columns)
        return ListedPairs(places // columns, places % columns)

    def with_others(self, others: ListedPairs) -> ListedPairs:
        rows = torch.cat([self.rows, others.rows])
        return ListedPairs(rows, torch.cat([self.columns, others.columns]))


class SameLabelPairs(ListedPairs):
    """The pairs of equal label, row by row; labels are counted from 0."""

    def __init__(self, rows: Tensor, columns: Tensor, row_labels: Tensor, column_labels: Tensor):
        super().__init__(rows, columns)
        self.row_labels, self.column_labels = row_labels, column_labels

    def is_one_to_one(self, rows: int, columns: int) -> bool:
        """Whether each row and each column is in one pair."""
        if not self.count == rows == columns:
            return False
        each = torch.arange(rows, device=self.rows.device)
        return torch.equal(self.rows, each) and torch.equal(self.columns.sort().values, each)


def same_label_pairs(
    labels: Tensor, column_labels: Tensor, *, without_self: bool
) -> SameLabelPairs:
    """labels: (N,), column_labels: (R,); without_self: no pair of a row and itself."""
    both = torch.cat([labels, column_labels.to(labels)])
    counted = torch.unique(both, return_inverse=True)[1]
    rows, columns = counted[: len(labels)], counted[len(labels) :]
    order = torch.argsort(columns, stable=True)
    in_order = columns[order]
    first = torch.searchsorted(in_order, rows)
    counts = torch.searchsorted(in_order, rows, right=True) - first
    of_pair = torch.repeat_interleave(counts)
    before = torch.cumsum(counts, 0) - counts
    within = torch.arange(len(of_pair), device=labels.device) - before[of_pair]
    partners = order[first[of_pair] + within]
    if without_self:
        kept = of_pair != partners
        of_pair, partners = of_pair[kept], partners[kept]
    return SameLabelPairs(of_pair, partners, rows, columns)
