"""Where ids are equal: listed, since there are few such pairs among N x M, or compared in full."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from crossalign.contrastive.problem import ContrastiveProblem

# Pairs of equal ids for each row and candidate, up to which they are listed: beyond it comparing
# all ids is as fast, and a list would need memory of its own order.
MOST_LISTED = 8


class EqualPairs(NamedTuple):
    """Every row and candidate of equal id, by row."""

    rows: Tensor  # (P,) ascending
    columns: Tensor  # (P,)
    first_of: Tensor  # (N + 1,) on the CPU: where a row's pairs begin

    def within(self, rows: slice, columns: slice) -> tuple[Tensor, Tensor]:
        """Those of some rows and of the candidates from columns.start on, counted from there."""
        part = slice(int(self.first_of[rows.start]), int(self.first_of[rows.stop]))
        row, column = self.rows[part] - rows.start, self.columns[part] - columns.start
        if columns.start == 0:
            return row, column
        is_here = column >= 0
        return row[is_here], column[is_here]


def equal_pairs(problem: ContrastiveProblem) -> EqualPairs | None:
    """None without ids to mask, with too many pairs, or where reading their number would stall."""
    query_ids, candidate_ids = problem.query_ids, problem.candidate_ids
    if query_ids is None or candidate_ids is None or problem.multi_positive:
        return None
    if query_ids.device.type != "cpu":
        return None
    query_ids = query_ids.contiguous()
    ordered, order = candidate_ids.contiguous().sort(stable=True)
    first = torch.searchsorted(ordered, query_ids)
    counts = torch.searchsorted(ordered, query_ids, right=True) - first
    first_of = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    total = int(first_of[-1])
    if total > MOST_LISTED * (len(query_ids) + len(candidate_ids)):
        return None
    rows = torch.arange(len(query_ids)).repeat_interleave(counts)
    columns = order[torch.arange(total) - first_of[rows] + first[rows]]
    return EqualPairs(rows, columns, first_of)
