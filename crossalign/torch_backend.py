"""The contrastive passes in plain PyTorch, in chunks: for CPU, float64, and without Triton.

The same memory promise as the kernels: O((N + M) D) and one workspace of a few rows of logits.

Shape suffixes: R rows of a chunk, N queries, M columns, K of them keys, D features.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from crossalign.contrastive_problem import (
    NORM_FLOOR,
    ContrastiveGrads,
    ContrastiveProblem,
    ContrastiveSums,
    accumulator,
    label_range,
    tie_slack,
)

# Logits per chunk. On a CPU 2^22 float32 (16 MiB) are many enough rows for efficient products and
# stay near the cores between the passes over them; a GPU needs larger products to be busy. At
# least MIN_ROWS rows, however many columns there are.
CPU_CHUNK_LOGITS = 2**22
GPU_CHUNK_LOGITS = 2**26
MIN_ROWS = 64


def inverse_norms(x: Tensor) -> Tensor:
    """(n, D) -> (n,) 1 / max(||x||, 1e-12) in the accumulator dtype."""
    norms: Tensor = torch.linalg.vector_norm(x, dim=1, dtype=accumulator(x.dtype))
    return norms.clamp_min(NORM_FLOOR).reciprocal()


def normalize_backward(grad_unit: Tensor, x: Tensor, inverse_norm: Tensor) -> Tensor:
    """Gradient of x given that of x / max(||x||, floor): (g - u <u, g>) / ||x||, u the unit row."""
    unit = x.to(grad_unit.dtype) * inverse_norm[:, None]
    # Below the floor the divisor is a constant, so nothing is projected away.
    projected = (unit * grad_unit).sum(1, keepdim=True)
    projected = projected.masked_fill(inverse_norm[:, None] >= 1 / NORM_FLOOR, 0)
    return unit.mul_(-projected).add_(grad_unit).mul_(inverse_norm[:, None])


class _Logits:
    """Yields chunks of logits in one reused workspace, exclusions and weights applied."""

    def __init__(self, query: Tensor, columns: Tensor, problem: ContrastiveProblem) -> None:
        self.query, self.columns, self.problem = query, columns, problem
        self.dtype = accumulator(query.dtype)
        none = query.new_empty(0, dtype=self.dtype)
        self.query_inverse_norm = inverse_norms(query) if problem.normalize else none
        # The outputs of an op may not share storage.
        self.column_inverse_norm = inverse_norms(columns) if problem.normalize else none.clone()
        self.columns_MD = columns.to(self.dtype)
        if problem.normalize:
            self.columns_MD = self.columns_MD * self.column_inverse_norm[:, None]
        budget = CPU_CHUNK_LOGITS if query.device.type == "cpu" else GPU_CHUNK_LOGITS
        num_rows = min(query.shape[0], max(MIN_ROWS, budget // max(1, columns.shape[0])))
        self.workspace_RM = query.new_empty(num_rows, columns.shape[0], dtype=self.dtype)

    def scaled_queries(self, rows: slice) -> Tensor:
        """(R, D) queries times 1 / temperature, normalised if asked."""
        query_RD = self.query[rows].to(self.dtype)
        if self.problem.normalize:
            return query_RD * (self.query_inverse_norm[rows, None] * self.problem.scale)
        return query_RD * self.problem.scale

    def __iter__(self) -> Iterator[tuple[slice, Tensor, Tensor, Tensor | None]]:
        """(rows, scaled queries (R, D), logits (R, M), further positives (R, M) or None).

        The logits still hold the own columns; every excluded logit is -inf.
        """
        num_queries = self.query.shape[0]
        step = max(1, self.workspace_RM.shape[0])
        for first in range(0, num_queries, step):
            rows = slice(first, min(first + step, num_queries))
            query_RD = self.scaled_queries(rows)
            logits_RM = self.workspace_RM[: query_RD.shape[0]]
            torch.mm(query_RD, self.columns_MD.T, out=logits_RM)
            self._apply_owners(logits_RM, rows)
            yield rows, query_RD, logits_RM, self._apply_ids(logits_RM, rows)

    def _apply_owners(self, logits_RM: Tensor, rows: slice) -> None:
        problem = self.problem
        if problem.negative_owner is None:
            return
        row_index = torch.arange(rows.start, rows.stop, device=logits_RM.device)
        is_owned = row_index[:, None] == problem.negative_owner[None, :]
        negatives = logits_RM[:, problem.num_keys :]
        if problem.hard_negative_weight:
            negatives.add_(is_owned, alpha=problem.hard_negative_weight)
        if not problem.share_negatives:
            negatives.masked_fill_(is_owned.logical_not_(), -torch.inf)

    def _apply_ids(self, logits_RM: Tensor, rows: slice) -> Tensor | None:
        """Excludes equal ids, the own column apart, or returns where further positives stand."""
        problem = self.problem
        if problem.query_ids is None or problem.column_ids is None:
            return None
        num_ids = problem.column_ids.shape[0]
        is_equal = problem.query_ids[rows, None] == problem.column_ids[None, :]
        own_view(is_equal, problem, rows).fill_(False)
        if not problem.multi_positive:
            logits_RM[:, :num_ids].masked_fill_(is_equal, -torch.inf)
            return None
        positives_RM = is_equal.new_zeros(logits_RM.shape)
        positives_RM[:, :num_ids] = is_equal.logical_and_(logits_RM[:, :num_ids] != -torch.inf)
        return positives_RM


def own_view(tile_RM: Tensor, problem: ContrastiveProblem, rows: slice) -> Tensor:
    """The own columns of a chunk's rows, as a view of its diagonal."""
    first_row, first_column, count = label_range(problem, rows.start, rows.stop)
    if count == 0:
        return tile_RM.new_empty(0)
    row = first_row - rows.start
    return tile_RM[row : row + count, first_column : first_column + count].diagonal()


def contrastive_fwd(
    query: Tensor,
    columns: Tensor,
    problem: ContrastiveProblem,
    known_own: Tensor | None,
    with_stats: bool,
) -> ContrastiveSums:
    """query: (N, D), columns: (M, D); known_own: (N,) own logits where they are not among these."""
    chunks = _Logits(query, columns, problem)
    num_queries, num_keys = query.shape[0], problem.num_keys
    symmetric, multi = problem.symmetric, problem.multi_positive

    def zeros(size: int, dtype: torch.dtype = chunks.dtype) -> Tensor:
        return query.new_zeros(size, dtype=dtype)

    sums = ContrastiveSums(
        own=zeros(num_queries) if known_own is None else known_own.clone(),
        row_rest=zeros(num_queries),
        column_rest=zeros(num_keys if symmetric else 0),
        row_positive_sum=zeros(num_queries if multi else 0),
        row_positive_count=zeros(num_queries if multi else 0),
        column_positive_sum=zeros(num_keys if multi and symmetric else 0),
        column_positive_count=zeros(num_keys if multi and symmetric else 0),
        num_above=zeros(num_queries if with_stats else 0, torch.int32),
        num_tied=zeros(num_queries if with_stats else 0, torch.int32),
        query_inverse_norm=chunks.query_inverse_norm,
        column_inverse_norm=chunks.column_inverse_norm,
    )
    if problem.bound is None:
        sums.column_rest.fill_(-torch.inf)
    slack = tie_slack(query, columns, problem, sums.own) if with_stats else None
    for rows, _, logits_RM, positives_RM in chunks:
        own = own_view(logits_RM, problem, rows)
        first_row, _, count = label_range(problem, rows.start, rows.stop)
        sums.own[first_row : first_row + count] = own
        own.fill_(-torch.inf)
        if positives_RM is not None:
            _add_positives(sums, rows, logits_RM, positives_RM, problem)
        if slack is not None:
            _count_above(sums, rows, slack[rows], logits_RM, positives_RM)
        _add_rest(sums, rows, logits_RM, problem)
    if problem.bound is not None:
        sums.row_rest.log_()
        sums.column_rest.log_()
    return sums


def _add_rest(
    sums: ContrastiveSums, rows: slice, logits_RM: Tensor, problem: ContrastiveProblem
) -> None:
    """Row and column sums of one chunk; of bounded logits these are plain sums of exp."""
    keys_RK = logits_RM[:, : problem.num_keys]
    if problem.bound is None:
        torch.logsumexp(logits_RM, 1, out=sums.row_rest[rows])
        if problem.symmetric:
            total = torch.logaddexp(sums.column_rest, torch.logsumexp(keys_RK, 0))
            sums.column_rest.copy_(total)
        return
    logits_RM.exp_()
    torch.sum(logits_RM, 1, out=sums.row_rest[rows])
    if problem.symmetric:
        sums.column_rest.add_(keys_RK.sum(0))


def _add_positives(
    sums: ContrastiveSums,
    rows: slice,
    logits_RM: Tensor,
    positives_RM: Tensor,
    problem: ContrastiveProblem,
) -> None:
    positive_logits_RM = torch.where(positives_RM, logits_RM, 0)
    torch.sum(positive_logits_RM, 1, out=sums.row_positive_sum[rows])
    sums.row_positive_count[rows] = positives_RM.sum(1).to(sums.row_positive_count.dtype)
    if problem.symmetric:
        sums.column_positive_sum.add_(positive_logits_RM[:, : problem.num_keys].sum(0))
        sums.column_positive_count.add_(positives_RM[:, : problem.num_keys].sum(0))


def _count_above(
    sums: ContrastiveSums,
    rows: slice,
    slack_R: Tensor,
    logits_RM: Tensor,
    positives_RM: Tensor | None,
) -> None:
    own_R = sums.own[rows]
    is_above_RM = logits_RM > (own_R + slack_R)[:, None]
    is_tied_RM = (logits_RM >= (own_R - slack_R)[:, None]).logical_and_(~is_above_RM)
    for counts, hits_RM in ((sums.num_above, is_above_RM), (sums.num_tied, is_tied_RM)):
        if positives_RM is not None:
            hits_RM.logical_and_(~positives_RM)
        counts[rows] = hits_RM.sum(1, dtype=torch.int32)


def contrastive_bwd(
    query: Tensor,
    columns: Tensor,
    problem: ContrastiveProblem,
    sums: ContrastiveSums,
    grads: ContrastiveGrads,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of (query (N, D), columns (M, D), scale ()), the first two in their dtype.

    With G = d loss / d logits: grad_query^ = scale * G @ columns^, grad_columns^ = scale * G.T @
    query^, and since the product of both sides with the logits is the same,
    grad_scale = sum_i <(G @ columns^)_i, query^_i>.
    """
    chunks = _Logits(query, columns, problem)
    grad_query = torch.empty_like(query)
    grad_columns_MD = torch.zeros_like(chunks.columns_MD)
    grad_scale = torch.zeros_like(problem.scale)
    # A second workspace, kept: fresh memory for every chunk costs more than the arithmetic on it.
    scratch_RM = torch.empty_like(chunks.workspace_RM) if problem.symmetric else query.new_empty(0)
    for rows, query_RD, logits_RM, positives_RM in chunks:
        _logits_to_grad(logits_RM, scratch_RM, positives_RM, rows, problem, sums, grads)
        grad_RD = logits_RM @ chunks.columns_MD
        grad_columns_MD.addmm_(logits_RM.T, query_RD)
        grad_scale += (grad_RD * query_RD).sum() / problem.scale
        grad_RD *= problem.scale
        if problem.normalize:
            inverse_norm = chunks.query_inverse_norm[rows]
            grad_RD = normalize_backward(grad_RD, query[rows], inverse_norm)
        grad_query[rows] = grad_RD.to(query.dtype)
    if problem.normalize:
        inverse_norm = chunks.column_inverse_norm
        grad_columns_MD = normalize_backward(grad_columns_MD, columns, inverse_norm)
    return grad_query, grad_columns_MD.to(columns.dtype), grad_scale


def _logits_to_grad(
    logits_RM: Tensor,
    scratch_RM: Tensor,
    positives_RM: Tensor | None,
    rows: slice,
    problem: ContrastiveProblem,
    sums: ContrastiveSums,
    grads: ContrastiveGrads,
) -> None:
    """Replaces a chunk of logits by d loss / d logits, in place."""
    num_keys = problem.num_keys
    row_rest, row_coefficient = sums.row_rest[rows], grads.row_rest[rows]
    own = own_view(logits_RM, problem, rows)
    own.fill_(-torch.inf)
    if not problem.symmetric:
        # A row without a rest has -inf everywhere; its softmax is 0 here, not NaN.
        logits_RM.sub_(row_rest.masked_fill(row_rest == -torch.inf, torch.inf)[:, None]).exp_()
        logits_RM.mul_(row_coefficient[:, None])
    elif problem.bound is not None:
        # One exponential serves both directions: exp(z) times a rank-one sum.
        row_factor = _softmax_factor(row_coefficient, row_rest)
        column_factor = _softmax_factor(grads.column_rest, sums.column_rest)
        logits_RM.exp_()
        factors_RK = scratch_RM[: logits_RM.shape[0], :num_keys]
        torch.add(row_factor[:, None], column_factor[None, :], out=factors_RK)
        logits_RM[:, :num_keys].mul_(factors_RK)
        logits_RM[:, num_keys:].mul_(row_factor[:, None])
    else:
        column_rest = sums.column_rest
        column_rest = column_rest.masked_fill(column_rest == -torch.inf, torch.inf)
        columns_RK = (logits_RM[:, :num_keys] - column_rest[None, :]).exp_()
        logits_RM.sub_(row_rest.masked_fill(row_rest == -torch.inf, torch.inf)[:, None]).exp_()
        logits_RM.mul_(row_coefficient[:, None])
        logits_RM[:, :num_keys].addcmul_(columns_RK, grads.column_rest[None, :])
    if positives_RM is not None:
        logits_RM.addcmul_(positives_RM.to(logits_RM.dtype), grads.row_positive_sum[rows, None])
        if problem.symmetric:
            keys_RK = positives_RM[:, :num_keys].to(logits_RM.dtype)
            logits_RM[:, :num_keys].addcmul_(keys_RK, grads.column_positive_sum[None, :])
    first_row, _, count = label_range(problem, rows.start, rows.stop)
    own.copy_(grads.own[first_row : first_row + count])


def _softmax_factor(coefficient: Tensor, rest: Tensor) -> Tensor:
    """coefficient * exp(-rest), 0 where there is no rest."""
    return coefficient * rest.masked_fill(rest == -torch.inf, torch.inf).neg_().exp_()
