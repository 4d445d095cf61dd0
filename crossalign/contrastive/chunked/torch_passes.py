"""The contrastive passes in plain PyTorch, in chunks: for CPU, float64, and without Triton.

The same memory promise as the kernels: O((N + M) D) and one workspace of a few rows of logits.

Shape suffixes: R rows of a chunk, N queries, M candidates, K of them keys, D features.
"""

from __future__ import annotations

import torch
from torch import Tensor

from crossalign.contrastive.chunked.chunk import Chunk
from crossalign.contrastive.chunked.exponentials import Exponentials
from crossalign.contrastive.chunked.gradient_sums import GradientSums
from crossalign.contrastive.chunked.torch_logits import LogitChunks
from crossalign.contrastive.problem import (
    ContrastiveGrads,
    ContrastiveProblem,
    ContrastiveSums,
    GradientNeeds,
    empty_sums,
    label_range,
    tie_slack,
)


def contrastive_fwd(
    query: Tensor,
    candidates: Tensor,
    problem: ContrastiveProblem,
    known_positive_logit: Tensor | None,
    with_stats: bool,
    kept: Tensor | None = None,
) -> ContrastiveSums:
    """query: (N, D), candidates: (M, D); known_positive_logit: (N,) positive logits where they are
    not among these; kept: see empty_kept, filled with the exponentials of the last chunks."""
    chunks = LogitChunks(query, candidates, problem, may_compare_late=not with_stats, kept=kept)
    sums, exponentials = start_sums(chunks, with_stats), Exponentials(chunks)
    if known_positive_logit is not None:
        sums.positive_logit.copy_(known_positive_logit)
    slack = tie_slack(query, candidates, problem, sums.positive_logit) if with_stats else None
    for chunk in chunks:
        is_known = known_positive_logit is not None
        take_labels(sums, slack, chunk, chunks, is_known=is_known)
        _add_rest(sums, chunk, problem, exponentials)
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
    if chunks.problem.exclude_label:
        sums.positive_logit.fill_(-torch.inf)  # the best positive of none
    if chunks.problem.bound is None:
        sums.row_negative_lse.fill_(-torch.inf)
        sums.column_negative_lse.fill_(-torch.inf)
    return sums


def take_labels(
    sums: ContrastiveSums,
    slack: Tensor | None,
    chunk: Chunk,
    chunks: LogitChunks,
    *,
    is_known: bool = False,
) -> None:
    """All of a chunk but its rest: positive logits, positives, statistics, sums of logits."""
    problem = chunks.problem
    first_row, _, count = label_range(problem, chunk.rows.start, chunk.rows.stop)
    if not problem.exclude_label:
        sums.positive_logit[first_row : first_row + count] = chunk.positive_logit
    elif chunk.positives_RM is not None and not is_known and chunk.logits_RM.shape[1]:
        best = torch.where(chunk.positives_RM, chunk.logits_RM, -torch.inf).amax(1)
        sums.positive_logit[chunk.rows] = best
    if chunk.positives_RM is not None:
        _add_positives(sums, chunk, problem)
    if problem.with_logit_sums and chunk.keeps_all:
        _add_all_logits(sums, chunk, chunks)
    elif problem.with_logit_sums:
        _add_logits(sums, chunk, problem)
    if slack is not None:
        _count_above(sums, chunk, slack[chunk.rows])


def _add_rest(
    sums: ContrastiveSums, chunk: Chunk, problem: ContrastiveProblem, exponentials: Exponentials
) -> None:
    """Row and column sums of one chunk; of bounded logits these are plain sums of exp."""
    rows, logits_RM = chunk.rows, chunk.logits_RM
    columns = sums.row_negative_lse if problem.same_side else sums.column_negative_lse
    if problem.bound is not None:
        exponentials.add_sums(chunk, sums.row_negative_lse[rows], columns)
        return
    columns = columns[chunk.keys]
    row_part, column_part = logits_RM, logits_RM[:, chunk.column_part]
    if chunk.row_left_out_RM is not None:
        row_part = row_part.masked_fill(chunk.row_left_out_RM, -torch.inf)
    if chunk.column_left_out_RK is not None:
        column_part = column_part.masked_fill(chunk.column_left_out_RK, -torch.inf)
    of_rows = sums.row_negative_lse[rows]
    of_rows.copy_(torch.logaddexp(of_rows, torch.logsumexp(row_part, 1)))
    columns.copy_(torch.logaddexp(columns, torch.logsumexp(column_part, 0)))


def _add_positives(sums: ContrastiveSums, chunk: Chunk, problem: ContrastiveProblem) -> None:
    assert chunk.positives_RM is not None
    logits_RM = torch.where(chunk.positives_RM, chunk.logits_RM, 0)
    torch.sum(logits_RM, 1, out=sums.row_positive_sum[chunk.rows])
    sums.row_positive_count[chunk.rows] = chunk.positives_RM.sum(1).to(logits_RM.dtype)
    if problem.symmetric:
        sums.column_positive_sum.add_(logits_RM[:, chunk.column_part].sum(0))
        sums.column_positive_count.add_(chunk.positives_RM[:, chunk.column_part].sum(0))


def _add_logits(sums: ContrastiveSums, chunk: Chunk, problem: ContrastiveProblem) -> None:
    """Sums and counts of all logits that are not left out."""
    for_rows, for_columns = kept_logits(chunk)
    logits_RM, is_column = chunk.logits_RM, chunk.column_part
    sums.row_logit_sum[chunk.rows] += torch.where(for_rows, logits_RM, 0).sum(1)
    sums.row_logit_count[chunk.rows] += for_rows.sum(1)
    total, count = sums.column_logit_sum, sums.column_logit_count
    if problem.same_side:
        total, count = sums.row_logit_sum, sums.row_logit_count
    if problem.symmetric or problem.same_side:
        total[chunk.keys] += torch.where(for_columns, logits_RM[:, is_column], 0).sum(0)
        count[chunk.keys] += for_columns.sum(0)


def _add_all_logits(sums: ContrastiveSums, chunk: Chunk, chunks: LogitChunks) -> None:
    """The same where only labels are left out: a row's logits add up to <query, sum of keys>."""
    problem, candidates_MD = chunks.problem, chunks.candidates_MD
    rows, columns, query_RD = chunk[:3]
    first_row, first_column, num_labels = label_range(problem, rows.start, rows.stop)
    of_labels = slice(first_row, first_row + num_labels)
    is_whole = columns == slice(0, len(candidates_MD))
    of_candidates = chunks.candidate_sum_D if is_whole else candidates_MD[columns].sum(0)
    sums.row_logit_sum[rows] += query_RD @ of_candidates
    sums.row_logit_sum[of_labels] -= chunk.positive_logit
    sums.row_logit_count[rows] += columns.stop - columns.start
    sums.row_logit_count[of_labels] -= 1
    if not (problem.symmetric or problem.same_side):
        return
    total, count = sums.column_logit_sum, sums.column_logit_count
    if problem.same_side:
        total, count = sums.row_logit_sum, sums.row_logit_count
    total[chunk.keys] += candidates_MD[chunk.keys] @ query_RD.sum(0)
    count[chunk.keys] += rows.stop - rows.start
    if problem.symmetric:  # of one side the keys stand behind the labels
        of_labels = slice(first_column, first_column + num_labels)
        total[of_labels] -= chunk.positive_logit
        count[of_labels] -= 1


def kept_logits(chunk: Chunk) -> tuple[Tensor, Tensor]:
    """Which logits count in the terms of the rows (R, M), and in those of the columns."""
    kept_RM = chunk.logits_RM != -torch.inf
    for_columns = kept_RM[:, chunk.column_part]
    if chunk.column_left_out_RK is not None:
        for_columns = for_columns & ~chunk.column_left_out_RK
    if chunk.row_left_out_RM is not None:
        kept_RM = kept_RM & ~chunk.row_left_out_RM
    return kept_RM, for_columns


def _count_above(sums: ContrastiveSums, chunk: Chunk, slack_R: Tensor) -> None:
    own_R, logits_RM = sums.positive_logit[chunk.rows], chunk.logits_RM
    is_above_RM = logits_RM > (own_R + slack_R)[:, None]
    is_tied_RM = (logits_RM >= (own_R - slack_R)[:, None]).logical_and_(~is_above_RM)
    for counts, hits_RM in ((sums.num_above, is_above_RM), (sums.num_tied, is_tied_RM)):
        for left_out_RM in (chunk.positives_RM, chunk.row_left_out_RM):
            if left_out_RM is not None:
                hits_RM.logical_and_(~left_out_RM)
        counts[chunk.rows] = hits_RM.sum(1, dtype=torch.int32)


def contrastive_bwd(
    query: Tensor,
    candidates: Tensor,
    problem: ContrastiveProblem,
    sums: ContrastiveSums,
    grads: ContrastiveGrads,
    needs: GradientNeeds | None = None,
    kept: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of (query (N, D), wanted candidates (m, D), scale ()), the first two in their
    dtype, or as parts of a sum in the accumulator's; what is not needed has no rows.

    kept: as the forward pass filled it."""
    chunks = LogitChunks(query, candidates, problem, may_compare_late=True, kept=kept)
    needs = needs or GradientNeeds()
    gradients = GradientSums(chunks, needs.gradient_dtype(query.dtype), needs)
    exponentials = Exponentials(chunks)
    for chunk, kept_RM in chunks.with_kept():
        _logits_to_grad(chunk, exponentials, problem, sums, grads, kept_RM)
        gradients.add(chunk)
    return gradients.result()


def _logits_to_grad(
    chunk: Chunk,
    exponentials: Exponentials,
    problem: ContrastiveProblem,
    sums: ContrastiveSums,
    grads: ContrastiveGrads,
    kept_RM: Tensor | None,
) -> None:
    """Replaces a chunk of logits by d loss / d logits, in place; kept_RM: their exponentials, from
    which it is formed without reading the logits."""
    rows, logits_RM = chunk.rows, chunk.logits_RM
    has_sums = problem.with_logit_sums
    kept = kept_logits(chunk) if has_sums and not chunk.keeps_all else None
    row_lse, row_coefficient = sums.row_negative_lse[rows], grads.row_negative_lse[rows]
    column_lse, column_coefficient = sums.column_negative_lse, grads.column_negative_lse
    column_logit_grad = grads.column_logit_sum
    if problem.same_side:
        column_lse, column_coefficient = sums.row_negative_lse, grads.row_negative_lse
        column_logit_grad = grads.row_logit_sum
    if problem.bound is not None:
        # One exponential serves both directions: exp(z) times a rank-one sum.
        of_columns = _softmax_factor(column_coefficient, column_lse)
        of_rows = _softmax_factor(row_coefficient, row_lse)
        exponentials.to_gradients(chunk, of_rows, of_columns, kept_RM)
    elif not (problem.symmetric or problem.same_side):
        logits_RM.sub_(_without_empty(row_lse)[:, None]).exp_()
        logits_RM.mul_(row_coefficient[:, None])
    else:
        of_keys = _without_empty(column_lse[chunk.keys])
        columns_RK = (logits_RM[:, chunk.column_part] - of_keys).exp_()
        columns_RK.mul_(column_coefficient[chunk.keys])
        logits_RM.sub_(_without_empty(row_lse)[:, None]).exp_().mul_(row_coefficient[:, None])
        if chunk.row_left_out_RM is not None:
            logits_RM.masked_fill_(chunk.row_left_out_RM, 0)
        if chunk.column_left_out_RK is not None:
            columns_RK.masked_fill_(chunk.column_left_out_RK, 0)
        logits_RM[:, chunk.column_part].add_(columns_RK)
    if has_sums and kept is None:
        logits_RM.add_(grads.row_logit_sum[rows, None])
        if problem.symmetric or problem.same_side:
            logits_RM[:, chunk.column_part].add_(column_logit_grad[chunk.keys])
    if kept is not None:
        logits_RM.addcmul_(kept[0].to(logits_RM.dtype), grads.row_logit_sum[rows, None])
        if problem.symmetric or problem.same_side:
            for_columns = kept[1].to(logits_RM.dtype)
            logits_RM[:, chunk.column_part].addcmul_(for_columns, column_logit_grad[chunk.keys])
    if chunk.positives_RM is not None:
        positives_RM = chunk.positives_RM.to(logits_RM.dtype)
        logits_RM.addcmul_(positives_RM, grads.row_positive_sum[rows, None])
        if problem.symmetric:
            keys_RK = positives_RM[:, chunk.column_part]
            logits_RM[:, chunk.column_part].addcmul_(keys_RK, grads.column_positive_sum)
    first_row, _, count = label_range(problem, rows.start, rows.stop)
    if problem.exclude_label:
        chunk.labels.zero_()
    else:
        chunk.labels.copy_(grads.positive_logit[first_row : first_row + count])


def _without_empty(lse: Tensor) -> Tensor:
    """A term without a rest has -inf everywhere; with this its softmax is 0, not NaN."""
    return lse.masked_fill(lse == -torch.inf, torch.inf)


def _softmax_factor(coefficient: Tensor, rest: Tensor) -> Tensor:
    """coefficient * exp(-rest), 0 where there is no rest."""
    return coefficient * _without_empty(rest).neg_().exp_()
