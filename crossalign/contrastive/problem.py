"""What one contrastive forward pass is given and what it yields: the words all backends share.

Shapes: N queries, M candidates (the keys, then the extra negatives), D features.

Row i's positive is i + label_offset. A row's "rest" is every column but its own that is not
excluded; a column's "rest" is every row but its own. With own[i] the positive logit and
row_negative_lse[i] the
logsumexp over the rest, the row term is

    logsumexp_j z[i, j] - z[i, own] = softplus(row_negative_lse[i] - own[i])

which keeps its relative precision when the positive's probability p tends to 1: the term, p - 1 and
both gradients are formed without subtracting nearly equal numbers.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from crossalign.precision import accumulator


class ContrastiveProblem(NamedTuple):
    """Everything that shapes the logits, queries and candidates apart; first all tensors."""

    scale: Tensor  # () accumulator dtype: 1 / temperature
    query_ids: Tensor | None = None  # (N,) int64
    candidate_ids: Tensor | None = None  # (num_keys or M,) int64; further candidates have no id
    negative_owner: Tensor | None = None  # (M - num_keys,) int64: the row that owns each negative
    row_limit: Tensor | None = None  # (N,) scaled similarities above it are left out of the row
    column_limit: Tensor | None = None  # (num_keys,) likewise the query out of column j
    query_guide: Tensor | None = None  # (N, G) unit rows of a guide
    candidate_guide: Tensor | None = None  # (M, G)
    row_guide_limit: Tensor | None = None  # (N,) guide similarities above it, likewise
    column_guide_limit: Tensor | None = None  # (num_keys,)
    num_keys: int = 0  # candidates below it are keys and have a column term
    label_offset: int = 0  # row i's positive is i + label_offset, if that is a key
    hard_negative_weight: float = 0.0
    share_negatives: bool = True
    exclude_owned: bool = False  # a negative counts for all but its owner
    exclude_label: bool = False  # candidate i + label_offset is left out and no positive
    multi_positive: bool = False  # equal ids: False: excluded; True: further positives
    hardness: float = 0.0  # times the similarity, a constant: added to logits of negatives
    hardness_on: str = "all"  # "all", "in_batch", "owned"
    symmetric: bool = False
    same_side: bool = False  # the candidates begin with the queries: z[i, j] = z[j, i]
    with_logit_sums: bool = False  # also sum and count the logits of the rest
    normalize: bool = True
    bound: float | None = None  # of |logits|, if so small that exp needs no maximum taken off

    @property
    def has_limits(self) -> bool:
        """Whether a similarity, the pair's own or a guide's, can leave a candidate out."""
        return self.row_limit is not None or self.query_guide is not None


PROBLEM_TENSORS = ContrastiveProblem._fields[: ContrastiveProblem._fields.index("num_keys")]


class ContrastiveSums(NamedTuple):
    """One pass over the logits; what was not asked for has size 0."""

    positive_logit: Tensor  # (N,) of the positive, or the best one with exclude_label; see below
    row_negative_lse: Tensor  # (N,) logsumexp over the rest of the row; -inf if there is none
    column_negative_lse: Tensor  # (num_keys,) likewise for the candidates, if symmetric
    row_positive_sum: Tensor  # (N,) sum of the logits of further positives, if multi_positive
    row_positive_count: Tensor  # (N,) how many they are
    column_positive_sum: Tensor  # (num_keys,) likewise, if symmetric too
    column_positive_count: Tensor  # (num_keys,)
    row_logit_sum: Tensor  # (N,) sum of the logits of the rest, if with_logit_sums
    row_logit_count: Tensor  # (N,) how many they are
    column_logit_sum: Tensor  # (num_keys,) likewise, if symmetric too
    column_logit_count: Tensor  # (num_keys,)
    # (N,) int32 rest candidates (no positives) above the positive logit, if with_stats
    num_above: Tensor
    num_tied: Tensor  # (N,) int32 equal to it, see tie_slack
    query_inverse_norm: Tensor  # (N,), if normalize
    candidate_inverse_norm: Tensor  # (M,), if normalize


NON_DIFFERENTIABLE_SUMS = (
    *("row_positive_count", "column_positive_count", "row_logit_count", "column_logit_count"),
    *("num_above", "num_tied", "query_inverse_norm", "candidate_inverse_norm"),
)


def empty_sums(
    like: Tensor,
    problem: ContrastiveProblem,
    num_candidates: int,
    with_stats: bool,
    **given: Tensor,
) -> ContrastiveSums:
    """The fields as long as one pass makes them, to be filled; those that are given as they are.

    like: (N, D), the queries.
    """
    num_queries = like.shape[0]
    num_keys = problem.num_keys if problem.symmetric else 0
    multi, with_sums = problem.multi_positive, problem.with_logit_sums
    lengths = {
        "positive_logit": num_queries,
        "row_negative_lse": num_queries,
        "column_negative_lse": num_keys,
        "row_positive_sum": num_queries if multi else 0,
        "row_positive_count": num_queries if multi else 0,
        "column_positive_sum": num_keys if multi else 0,
        "column_positive_count": num_keys if multi else 0,
        "row_logit_sum": num_queries if with_sums else 0,
        "row_logit_count": num_queries if with_sums else 0,
        "column_logit_sum": num_keys if with_sums else 0,
        "column_logit_count": num_keys if with_sums else 0,
        "num_above": num_queries if with_stats else 0,
        "num_tied": num_queries if with_stats else 0,
        "query_inverse_norm": num_queries if problem.normalize else 0,
        "candidate_inverse_norm": num_candidates if problem.normalize else 0,
    }
    for name in lengths.keys() - given.keys():
        is_count = name in ("num_above", "num_tied")
        dtype = torch.int32 if is_count else accumulator(like.dtype)
        given[name] = like.new_empty(lengths[name], dtype=dtype)
    return ContrastiveSums(**given)


class ContrastiveGrads(NamedTuple):
    """Upstream gradients of the sums, the shapes of theirs; zeros where nothing flows."""

    positive_logit: Tensor
    row_negative_lse: Tensor
    column_negative_lse: Tensor
    row_positive_sum: Tensor
    column_positive_sum: Tensor
    row_logit_sum: Tensor
    column_logit_sum: Tensor


class GradientNeeds(NamedTuple):
    """Whose gradient a backward pass is to form: the others cost no product and no buffer."""

    query: bool = True
    candidates: bool = True
    scale: bool = True
    candidate_rows: slice | None = None  # the candidates that need one; None: all of them
    is_partial: bool = False  # the embeddings' gradients are parts of a sum, which is rounded once

    def wanted(self, num_candidates: int) -> slice:
        """The rows of the candidates whose gradient is formed."""
        if not self.candidates:
            return slice(0, 0)
        return self.candidate_rows or slice(0, num_candidates)

    def gradient_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """Of the gradients of embeddings that have this dtype."""
        return accumulator(dtype) if self.is_partial else dtype


def label_range(problem: ContrastiveProblem, first_row: int, last_row: int) -> tuple[int, int, int]:
    """Rows of [first_row, last_row) whose positive is here: (first row, its column, how many)."""
    start = max(first_row, -problem.label_offset)
    stop = min(last_row, problem.num_keys - problem.label_offset)
    return start, start + problem.label_offset, max(0, stop - start)


def dot_rounding(num_features: int, eps: float) -> float:
    """How far two orders of summing a dot product of unit vectors lie apart.

    One order sums up to some 400 products in a row, which rounds to sqrt(D) eps at most and here to
    7 eps (measured for D up to 20,000, all products of one sign, in blocks of 384), and then the
    sums of such blocks, whose roundings are few. A bound that grew on with sqrt(D) took other keys
    for copies.
    """
    return min(math.sqrt(num_features), 8.0) * eps


def tie_slack(
    query: Tensor, candidates: Tensor, problem: ContrastiveProblem, positive_logit: Tensor
) -> Tensor:
    """(N,) tolerance within which another logit ties with the positive's.

    On a CPU, matrix products sum the columns of a tail in another order, so that a copy of the own
    key can differ by the rounding of a dot product. On a GPU all candidates are multiplied alike,
    and equal means equal.
    """
    if query.is_cuda:
        return torch.zeros_like(positive_logit)
    eps = torch.finfo(positive_logit.dtype).eps
    rounding = dot_rounding(query.shape[1], eps)
    if problem.normalize:  # norms are rounded too, which of few features is all there is
        return ((rounding + 2 * eps) * problem.scale).expand(positive_logit.shape)
    if problem.exclude_label:  # which candidate is the best positive is not known yet
        norms = [
            torch.linalg.vector_norm(x, dim=1, dtype=positive_logit.dtype)
            for x in (query, candidates)
        ]
        largest = norms[1].amax() if len(candidates) else norms[1].sum()
        largest_slack: Tensor = rounding * problem.scale * norms[0] * largest
        return largest_slack
    slack = rounding * positive_logit.abs()  # all there is to go by where the own key is not here
    row, column, count = label_range(problem, 0, positive_logit.shape[0])
    pairs = (query[row : row + count], candidates[column : column + count])
    norms = [torch.linalg.vector_norm(x, dim=1, dtype=positive_logit.dtype) for x in pairs]
    slack[row : row + count] = rounding * problem.scale * norms[0] * norms[1]
    return slack
