"""A chunk of logits: a few rows, what of them counts, and where exponentials are kept.

Shape suffixes: R rows of a chunk, M candidates, K of them keys, D features.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from crossalign.contrastive.problem import ContrastiveProblem, label_range
from crossalign.precision import accumulator

# Exponentials that the forward pass keeps for the backward pass, which need not form them again.
KEPT_BYTES = 2**26


class Chunk(NamedTuple):
    """Some rows of logits, against all candidates or (same_side) against those from there on."""

    rows: slice
    columns: slice  # of the candidates
    query_RD: Tensor  # the scaled queries
    logits_RM: Tensor  # -inf at what is left out for both sides, and at the labels
    labels: Tensor  # a view of where the labels are in logits_RM
    positive_logit: Tensor  # what stood there
    positives_RM: Tensor | None  # further positives
    # Where limits apply and each logit serves its row and its column, which may differ: what is
    # left out for either. Otherwise rows' exclusions are -inf in logits_RM already.
    row_left_out_RM: Tensor | None
    column_left_out_RK: Tensor | None
    # Limits that are still to be applied: logits above them do not count for the row, the column.
    row_limit_R: Tensor | None
    column_limit_K: Tensor | None
    column_part: slice  # of logits_RM: those that also serve the terms of their columns
    keys: slice  # of the columns' terms: theirs
    keeps_all: bool  # nothing but labels is left out, and nothing is added to logits


def empty_kept(query: Tensor, num_candidates: int, problem: ContrastiveProblem) -> Tensor | None:
    """A workspace for the exponentials of some chunks, where keeping them saves a product: where
    the logits serve both their rows and their columns, and nothing but exponentials is asked for.
    """
    is_two_sided = problem.symmetric or problem.same_side
    needs_logits = problem.multi_positive or problem.with_logit_sums or problem.has_limits
    if problem.bound is None or not is_two_sided or needs_logits:
        return None
    dtype = accumulator(query.dtype)
    num_logits = min(query.shape[0] * num_candidates, KEPT_BYTES // dtype.itemsize)
    return query.new_empty(num_logits, dtype=dtype)


def by_columns(flat: Tensor, num_rows: int, num_columns: int) -> Tensor:
    """(R, M) column by column: so the BLAS of a CPU forms the few rows of logits a tenth faster."""
    return flat.view(num_columns, num_rows).T


def label_view(
    tile_RM: Tensor, problem: ContrastiveProblem, rows: slice, first_candidate: int = 0
) -> Tensor:
    """The labels of a chunk's rows, as a view of its diagonal; its columns start at that one."""
    first_row, first_column, count = label_range(problem, rows.start, rows.stop)
    if count == 0:
        return tile_RM.new_empty(0)
    row, column = first_row - rows.start, first_column - first_candidate
    return tile_RM[row : row + count, column : column + count].diagonal()
