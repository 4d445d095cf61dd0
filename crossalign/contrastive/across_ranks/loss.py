"""fused_contrastive_loss over the ranks of a process group: sums, reduction, statistics.

Each rank forms the terms of its own pairs. What that needs of other ranks, forward and backward,
is one autograd function with two schedules (all_gather, ring), so that the order of collectives
does not depend on the autograd graph. Around it is ordinary autograd on vectors.

Shapes: N_r pairs and H_r further negatives of this rank, N, H and M = N + H of all, W ranks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from crossalign.argument_checks import values_may_be_read
from crossalign.contrastive.across_ranks.agreement import (
    agree_on_arguments,
    choose_schedule,
    fill_missing,
    sharded_batch,
)
from crossalign.contrastive.across_ranks.all_gather import (
    gathered_gradients,
    gathered_problem,
    gathered_sums,
)
from crossalign.contrastive.across_ranks.ring import ring_gradients, ring_sums
from crossalign.contrastive.across_ranks.shards import ShardedBatch
from crossalign.contrastive.arguments import check_owner_given
from crossalign.contrastive.ops import pair_losses, upstream_gradients
from crossalign.contrastive.problem import (
    NON_DIFFERENTIABLE_SUMS,
    ContrastiveProblem,
    ContrastiveSums,
    LossArguments,
)
from crossalign.contrastive.terms import (
    ContrastiveStats,
    build_problem,
    reduce_terms,
    stat_rows,
    warn_without_negatives,
)
from crossalign.distributed.gather import ShardLayout, gather_rows
from crossalign.distributed.rank_agreement import check_group, graph_break

_NAME = "fused_contrastive_loss"


class _Schedule(NamedTuple):
    """How queries meet the candidates of other ranks; the functions are described where they
    are."""

    problem: Callable[[ContrastiveProblem, ShardedBatch], ContrastiveProblem]
    sums: Callable[..., tuple[ContrastiveSums, Tensor]]
    gradients: Callable[..., tuple[Tensor, Tensor | None, Tensor | None, Tensor]]


_SCHEDULES = {
    "all_gather": _Schedule(gathered_problem, gathered_sums, gathered_gradients),
    "ring": _Schedule(lambda problem, batch: problem, ring_sums, ring_gradients),
}


def loss_across_ranks(arguments: LossArguments) -> Any:
    """fused_contrastive_loss where arguments.group is given; arguments as yet unchecked.

    Cost beside the arithmetic, which is 1 / W of the whole on each rank: an exchange of records
    that the host waits for; then, with "all_gather", one gather of the candidates, one exchange of
    up
    to three numbers per key, and in backward one gather of as many and one reduce-scatter of the
    candidates' gradients. With "ring" W - 1 (backward W) transfers between neighbours.
    """
    return graph_break(_loss_across_ranks)(arguments)


def _loss_across_ranks(arguments: LossArguments) -> Any:
    check_group(_NAME, arguments.group)
    records = agree_on_arguments(arguments)
    arguments = fill_missing(arguments, records)
    check_owner_given(arguments)
    rows = [record["rows"] for record in records]
    if sum(rows) == 0:
        raise ValueError(f"{_NAME}: some rank of the group must have a row, got {len(rows)} empty")
    batch = sharded_batch(arguments, records)
    candidates = sum(rows) + sum(batch.negatives.rows)
    name = choose_schedule(arguments.gather, candidates, arguments.query, records)
    schedule = _SCHEDULES[name]
    problem = schedule.problem(build_problem(arguments), batch)
    scale = problem.scale
    need_scale = scale.requires_grad
    if any(record["needs gradient"] for record in records):
        inputs = (arguments.query, arguments.key, arguments.negatives, scale)
        if not any(given.requires_grad for given in inputs if given is not None):
            scale = scale.detach().requires_grad_()  # this rank, too, takes part in the backward
    outputs = _SumsAcrossRanks.apply(  # type: ignore[no-untyped-call]
        arguments.query,
        arguments.key,
        arguments.negatives,
        scale,
        problem,
        batch,
        schedule,
        need_scale,
    )
    return _reduce(arguments, ContrastiveSums(*outputs), problem, batch)


class _SumsAcrossRanks(torch.autograd.Function):
    """(query, key, negatives, scale) -> the sums of this rank's pairs over the whole batch."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        negatives: Tensor,
        scale: Tensor,
        problem: ContrastiveProblem,
        batch: ShardedBatch,
        schedule: _Schedule,
        need_scale: bool,
    ) -> tuple[Tensor, ...]:
        problem = problem._replace(scale=scale)
        sums, candidates = schedule.sums(query, key, negatives, problem, batch)
        ctx.problem = problem._replace(scale=None)  # type: ignore[arg-type]
        ctx.batch, ctx.schedule, ctx.need_scale = batch, schedule, need_scale
        ctx.save_for_backward(query, candidates, scale, *sums)
        ctx.mark_non_differentiable(*(getattr(sums, name) for name in NON_DIFFERENTIABLE_SUMS))
        ctx.set_materialize_grads(False)
        return tuple(sums)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
        query, candidates, scale, *saved = ctx.saved_tensors
        sums = ContrastiveSums(*saved)
        need_query, need_key, need_negatives = ctx.needs_input_grad[:3]
        grad_query, grad_key, grad_negatives, grad_scale = ctx.schedule.gradients(
            query,
            candidates,
            ctx.problem._replace(scale=scale),
            sums,
            upstream_gradients(upstream, sums),
            ctx.batch,
            need_query,
            ctx.need_scale,
        )
        return (
            grad_query if need_query else None,
            grad_key if need_key else None,
            grad_negatives if need_negatives else None,
            grad_scale if ctx.need_scale else None,
            *(None,) * 4,
        )


def _reduce(
    arguments: LossArguments,
    sums: ContrastiveSums,
    problem: ContrastiveProblem,
    batch: ShardedBatch,
) -> Any:
    """W * this rank's part of the loss, or its terms; with the statistics of the whole batch."""
    terms = pair_losses(sums, problem.symmetric, use_triton=batch.use_triton)
    weights = None if arguments.weights is None else arguments.weights.detach().to(terms.dtype)
    num_ranks, num_pairs = len(batch.keys.rows), sum(batch.keys.rows)
    has_negatives = num_pairs + sum(batch.negatives.rows) > 1
    divisor: Tensor | int = num_pairs
    stats = None
    if weights is not None or batch.with_stats or terms.device.type == "cpu":
        totals = _totals(sums, weights, problem, batch)
        if weights is not None:
            divisor = totals[0].to(terms.dtype)
        if values_may_be_read(totals):
            has_negatives = has_negatives and bool(totals[1] > 0)
            if weights is not None and arguments.reduction == "mean" and not totals[0]:
                raise ValueError(
                    f'{_NAME}: weights must not all be 0 on all ranks with reduction="mean"'
                )
        if batch.with_stats:
            stats = ContrastiveStats(*(totals[2:] / num_pairs).float())
    if not has_negatives:
        warn_without_negatives()
    if arguments.reduction == "none":
        loss = reduce_terms(terms, weights, "none")
    else:
        loss = reduce_terms(terms, weights, "sum") * num_ranks
    if arguments.reduction == "mean":
        loss = loss / divisor
    return (loss, stats) if batch.with_stats else loss


def _totals(
    sums: ContrastiveSums, weights: Tensor | None, problem: ContrastiveProblem, batch: ShardedBatch
) -> Tensor:
    """(2 or 6,) float64, of all ranks: weights, rows that have a negative, the statistics' sums.

    Added in rank order, so that every rank has the same bits.
    """
    rows = [
        torch.ones_like(sums.positive_logit) if weights is None else weights,
        sums.row_negative_lse.detach() != -torch.inf,
    ]
    if batch.with_stats:
        rows.extend(stat_rows(sums, problem.scale))
    totals = torch.stack([row.detach().double().sum() for row in rows])
    one_each = ShardLayout(batch.keys.group, batch.rank, (1,) * len(batch.keys.rows), None)
    return gather_rows(totals[None], one_each).sum(0)
