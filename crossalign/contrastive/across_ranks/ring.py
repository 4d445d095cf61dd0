"""The sums of a sharded batch with no rank ever holding more candidates than a few shards.

The shards of candidates go round (ring_pass). What the queries met so far contribute to a shard's
column terms, and in backward to its gradient, follows one step behind the shard, is added to what
this rank contributes, and after the last step comes home. Every sum has a fixed order: a query's
over the ranks r, r - 1, ..., a column's over the ranks r, r + 1, ...

Shapes: N_r pairs and H_r further negatives of rank r, M_r = N_r + H_r candidates, D features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from crossalign.contrastive.across_ranks.ring_pass import Traveling, circulate
from crossalign.contrastive.across_ranks.shards import (
    BackwardPass,
    ShardedBatch,
    block_gradients,
    block_sums,
    column_coefficients,
    column_parts,
    wanted_candidates,
    with_column_coefficients,
    with_column_parts,
)
from crossalign.contrastive.problem import (
    ContrastiveProblem,
    ContrastiveSums,
)
from crossalign.precision import accumulator, concatenated


def ring_sums(
    query: Tensor, key: Tensor, negatives: Tensor, problem: ContrastiveProblem, batch: ShardedBatch
) -> tuple[ContrastiveSums, Tensor]:
    """(the sums of this rank's pairs, its positives (M_r, D))."""
    candidates = concatenated([key, negatives]) if len(negatives) else key.contiguous()
    shard = _shard(candidates, problem, batch)
    best: Tensor | None = None
    if batch.with_stats and problem.exclude_label:
        # The best positive, which the statistics rank, is known when all shards have been seen.
        best = _ring_pass(query, shard, problem, batch._replace(with_stats=False))[0].positive_logit
    total, parts = _ring_pass(query, shard, problem, batch, best)
    return with_column_parts(total, parts, problem), candidates


def _ring_pass(
    query: Tensor,
    shard: Sequence[Traveling],
    problem: ContrastiveProblem,
    batch: ShardedBatch,
    known_positive_logit: Tensor | None = None,
) -> tuple[ContrastiveSums, Tensor]:
    """The sums of this rank's rows over all shards, and the parts of its keys' column terms."""
    totals: list[ContrastiveSums] = []

    def visit(source: int, arrived: list[Tensor]) -> Tensor:
        block = _block_problem(problem, batch, source, arrived)
        known = known_positive_logit
        if totals and not problem.exclude_label:
            known = totals[-1].positive_logit
        sums = block_sums(query, arrived[0], block, batch, known)
        totals[:] = [_add_rows(totals[0], sums, problem.exclude_label) if totals else sums]
        return column_parts(sums, block)

    parts = circulate(shard, batch.keys, visit, _combine_parts, batch.keys.rows)
    return totals[0], parts


def ring_gradients(
    given: BackwardPass,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor]:
    """Of this rank's query, key, negatives, and of scale (this rank's part)."""
    query, candidates, problem, sums, grads, batch, need_query, need_scale = given
    wide = accumulator(query.dtype)
    grad_query = query.new_zeros(query.shape if need_query else (0,), dtype=wide)
    grad_scale = torch.zeros_like(problem.scale)
    num_candidates = _rows_of_columns(batch)
    coefficients = column_coefficients(sums, grads, problem)
    shard = _shard(candidates, problem, batch)
    shard.append(Traveling(coefficients, batch.keys.rows))
    if problem.normalize:
        shard.append(Traveling(sums.candidate_inverse_norm, num_candidates))

    def visit(source: int, arrived: list[Tensor]) -> Tensor:
        block = _block_problem(problem, batch, source, arrived)
        coefficients, *inverse_norm = arrived[1 + len(_traveling_fields(problem)) :]
        block_sums, block_grads = with_column_coefficients(sums, grads, coefficients, block)
        if inverse_norm:
            block_sums = block_sums._replace(candidate_inverse_norm=inverse_norm[0])
        of_query, of_columns, of_scale = block_gradients(
            given._replace(candidates=arrived[0], problem=block, sums=block_sums, grads=block_grads)
        )
        if need_query:
            grad_query.add_(of_query)
        if need_scale:
            grad_scale.add_(of_scale)
        return of_columns

    pairs = zip(batch.keys.rows, num_candidates, strict=True)
    wanted = [wanted_candidates(batch, *pair) for pair in pairs]
    num_wanted = [rows.stop - rows.start for rows in wanted]
    grad_candidates = circulate(shard, batch.keys, visit, torch.add, num_wanted)
    grad_candidates = grad_candidates.to(candidates.dtype)
    num_keys = batch.keys.rows[batch.rank] if batch.keys_need_grad else 0
    grad_key, grad_negatives = grad_candidates[:num_keys], grad_candidates[num_keys:]
    return grad_query.to(query.dtype), grad_key, grad_negatives, grad_scale


def _rows_of_columns(batch: ShardedBatch) -> list[int]:
    pairs = zip(batch.keys.rows, batch.negatives.rows, strict=True)
    return [keys + negatives for keys, negatives in pairs]


def _traveling_fields(problem: ContrastiveProblem) -> list[str]:
    """What describes the candidates, and goes with them."""
    names = ("candidate_ids", "candidate_guide", "column_limit", "column_guide_limit")
    return [name for name in names if getattr(problem, name) is not None]


def _shard(candidates: Tensor, problem: ContrastiveProblem, batch: ShardedBatch) -> list[Traveling]:
    rows = _rows_of_columns(batch)
    of_field = {
        "candidate_ids": rows if batch.negatives_have_ids else batch.keys.rows,
        "candidate_guide": rows,
        "column_limit": batch.keys.rows,
        "column_guide_limit": batch.keys.rows,
    }
    fields = _traveling_fields(problem)
    described = [Traveling(getattr(problem, name), of_field[name]) for name in fields]
    return [Traveling(candidates, rows), *described]


def _block_problem(
    problem: ContrastiveProblem, batch: ShardedBatch, source: int, arrived: Sequence[Tensor]
) -> ContrastiveProblem:
    """This rank's queries against the candidates of rank `source`, and what came with them."""
    owner = problem.negative_owner
    if owner is not None and source != batch.rank:
        owner = owner.new_full((batch.negatives.rows[source],), -1)  # none of them is owned here
    num_keys = batch.keys.rows[source]
    block = problem._replace(
        negative_owner=owner,
        num_keys=num_keys,
        label_offset=batch.label_offset(problem, batch.first_row(source), num_keys),
    )
    fields = _traveling_fields(problem)
    described: dict[str, Any] = dict(zip(fields, arrived[1 : 1 + len(fields)], strict=True))
    return block._replace(**described)


def _add_rows(total: ContrastiveSums, sums: ContrastiveSums, is_best: bool) -> ContrastiveSums:
    """The first block's sums, with what further candidates add to those of the rows."""
    return total._replace(
        row_negative_lse=torch.logaddexp(total.row_negative_lse, sums.row_negative_lse),
        row_positive_sum=total.row_positive_sum + sums.row_positive_sum,
        row_positive_count=total.row_positive_count + sums.row_positive_count,
        row_logit_sum=total.row_logit_sum + sums.row_logit_sum,
        row_logit_count=total.row_logit_count + sums.row_logit_count,
        positive_logit=torch.maximum(total.positive_logit, sums.positive_logit)
        if is_best
        else total.positive_logit,
        num_above=total.num_above + sums.num_above,
        num_tied=total.num_tied + sums.num_tied,
    )


def _combine_parts(before: Tensor, here: Tensor) -> Tensor:
    """(num_keys, 0 to 5): the first is a log-sum-exp, the others are sums."""
    return torch.cat([torch.logaddexp(before[:, :1], here[:, :1]), before[:, 1:] + here[:, 1:]], 1)
