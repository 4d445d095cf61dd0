"""The contrastive passes in plain PyTorch, in chunks: for CPU, float64, and without Triton.

The same memory promise as the kernels: O((N + M) D) and one workspace of a few rows of logits.

Shape suffixes: R rows of a chunk, N queries, M candidates, K of them keys, D features.
"""

from __future__ import annotations

import torch
from torch import Tensor

from crossalign.contrastive.problem import (
    ContrastiveGrads,
    ContrastiveProblem,
    ContrastiveSums,
    GradientNeeds,
    empty_sums,
    label_range,
    tie_slack,
)
from crossalign.contrastive.torch_logits import GradientSums, LogitChunks, label_view


def contrastive_fwd(
    query: Tensor,
    candidates: Tensor,
    problem: ContrastiveProblem,
    known_positive_logit: Tensor | None,
    with_stats: bool,
) -> ContrastiveSums:
    """query: (N, D), candidates: (M, D); known_positive_logit: (N,) positive logits where they are
    not among these."""
    chunks = LogitChunks(query, candidates, problem)
    sums = start_sums(chunks, with_stats)
    if known_positive_logit is not None:
        sums.positive_logit.copy_(known_positive_logit)
    slack = tie_slack(query, candidates, problem, sums.positive_logit) if with_stats else None
    for rows, _, logits_RM, positives_RM in chunks:
        take_labels(sums, slack, rows, logits_RM, positives_RM, problem)
        _add_rest(sums, rows, logits_RM, problem)
    if problem.bound is not None:
        sums.row_negative_lse.log_()
        sums.column_negative_lse.log_()
    return sums


def start_sums(chunks: LogitChunks, with_stats: bool) -> ContrastiveSums:
    """The sums before the first chunk."""
    sums = empty_sums(
        chunks.query,
        chunks.problem,
        chunks.candidates.shape[0],
        with_stats,
        query_inverse_norm=chunks.query_inverse_norm,
        candidate_inverse_norm=chunks.candidate_inverse_norm,
    )
    for field in sums[:-2]:
        field.zero_()
    if chunks.problem.bound is None:
        sums.column_negative_lse.fill_(-torch.inf)
    return sums


def take_labels(
    sums: ContrastiveSums,
    slack: Tensor | None,
    rows: slice,
    logits_RM: Tensor,
    positives_RM: Tensor | None,
    problem: ContrastiveProblem,
) -> None:
    """All of a chunk but its rest: positive logits, positives, statistics. Leaves -inf at the
    own."""
    positive_logit = label_view(logits_RM, problem, rows)
    first_row, _, count = label_range(problem, rows.start, rows.stop)
    sums.positive_logit[first_row : first_row + count] = positive_logit
    positive_logit.fill_(-torch.inf)
    if positives_RM is not None:
        _add_positives(sums, rows, logits_RM, positives_RM, problem)
    if slack is not None:
        _count_above(sums, rows, slack[rows], logits_RM, positives_RM)


def _add_rest(
    sums: ContrastiveSums, rows: slice, logits_RM: Tensor, problem: ContrastiveProblem
) -> None:
    """Row and column sums of one chunk; of bounded logits these are plain sums of exp."""
    keys_RK = logits_RM[:, : problem.num_keys]
    if problem.bound is None:
        torch.logsumexp(logits_RM, 1, out=sums.row_negative_lse[rows])
        if problem.symmetric:
            total = torch.logaddexp(sums.column_negative_lse, torch.logsumexp(keys_RK, 0))
            sums.column_negative_lse.copy_(total)
        return
    logits_RM.exp_()
    torch.sum(logits_RM, 1, out=sums.row_negative_lse[rows])
    if problem.symmetric:
        sums.column_negative_lse.add_(keys_RK.sum(0))


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
    own_R = sums.positive_logit[rows]
    is_above_RM = logits_RM > (own_R + slack_R)[:, None]
    is_tied_RM = (logits_RM >= (own_R - slack_R)[:, None]).logical_and_(~is_above_RM)
    for counts, hits_RM in ((sums.num_above, is_above_RM), (sums.num_tied, is_tied_RM)):
        if positives_RM is not None:
            hits_RM.logical_and_(~positives_RM)
        counts[rows] = hits_RM.sum(1, dtype=torch.int32)


def contrastive_bwd(
    query: Tensor,
    candidates: Tensor,
    problem: ContrastiveProblem,
    sums: ContrastiveSums,
    grads: ContrastiveGrads,
    needs: GradientNeeds | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of (query (N, D), wanted candidates (m, D), scale ()), the first two in their
    dtype; what is not needed has no rows."""
    chunks = LogitChunks(query, candidates, problem)
    gradients = GradientSums(chunks, query.dtype, needs)
    # A second workspace, kept: fresh memory for every chunk costs more than the arithmetic on it.
    scratch_RM = torch.empty_like(chunks.workspace_RM) if problem.symmetric else query.new_empty(0)
    for rows, query_RD, logits_RM, positives_RM in chunks:
        _logits_to_grad(logits_RM, scratch_RM, positives_RM, rows, problem, sums, grads)
        gradients.add(rows, query_RD, logits_RM)
    return gradients.result()


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
    row_negative_lse, row_coefficient = sums.row_negative_lse[rows], grads.row_negative_lse[rows]
    positive_logit = label_view(logits_RM, problem, rows)
    positive_logit.fill_(-torch.inf)
    if not problem.symmetric:
        # A row without a rest has -inf everywhere; its softmax is 0 here, not NaN.
        logits_RM.sub_(
            row_negative_lse.masked_fill(row_negative_lse == -torch.inf, torch.inf)[:, None]
        ).exp_()
        logits_RM.mul_(row_coefficient[:, None])
    elif problem.bound is not None:
        # One exponential serves both directions: exp(z) times a rank-one sum.
        row_factor = _softmax_factor(row_coefficient, row_negative_lse)
        column_factor = _softmax_factor(grads.column_negative_lse, sums.column_negative_lse)
        logits_RM.exp_()
        factors_RK = scratch_RM[: logits_RM.shape[0], :num_keys]
        torch.add(row_factor[:, None], column_factor[None, :], out=factors_RK)
        logits_RM[:, :num_keys].mul_(factors_RK)
        logits_RM[:, num_keys:].mul_(row_factor[:, None])
    else:
        column_negative_lse = sums.column_negative_lse
        column_negative_lse = column_negative_lse.masked_fill(
            column_negative_lse == -torch.inf, torch.inf
        )
        columns_RK = (logits_RM[:, :num_keys] - column_negative_lse[None, :]).exp_()
        logits_RM.sub_(
            row_negative_lse.masked_fill(row_negative_lse == -torch.inf, torch.inf)[:, None]
        ).exp_()
        logits_RM.mul_(row_coefficient[:, None])
        logits_RM[:, :num_keys].addcmul_(columns_RK, grads.column_negative_lse[None, :])
    if positives_RM is not None:
        logits_RM.addcmul_(positives_RM.to(logits_RM.dtype), grads.row_positive_sum[rows, None])
        if problem.symmetric:
            keys_RK = positives_RM[:, :num_keys].to(logits_RM.dtype)
            logits_RM[:, :num_keys].addcmul_(keys_RK, grads.column_positive_sum[None, :])
    first_row, _, count = label_range(problem, rows.start, rows.stop)
    positive_logit.copy_(grads.positive_logit[first_row : first_row + count])


def _softmax_factor(coefficient: Tensor, rest: Tensor) -> Tensor:
    """coefficient * exp(-rest), 0 where there is no rest."""
    return coefficient * rest.masked_fill(rest == -torch.inf, torch.inf).neg_().exp_()
