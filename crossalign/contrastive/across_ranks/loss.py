"""fused_contrastive_loss over the ranks of a process group: sums, reduction, statistics.

Each rank forms the terms of its own pairs. What that needs of other ranks, forward and backward,
is one autograd function for all passes, with two schedules (all_gather, ring), so that the order of
collectives does not depend on the autograd graph. Around it is ordinary autograd on vectors.

Shapes: N_r pairs and H_r further negatives of this rank, N, H and M = N + H of all, W ranks.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
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
from crossalign.contrastive.across_ranks.shards import BackwardPass, ShardedBatch
from crossalign.contrastive.arguments import check_owner_given
from crossalign.contrastive.blocks import Pass, all_passes, blocks_of, query_key_pass
from crossalign.contrastive.combine import combined_terms, reduce_terms
from crossalign.contrastive.ops import upstream_gradients
from crossalign.contrastive.options import LossArguments
from crossalign.contrastive.problem import (
    NON_DIFFERENTIABLE_SUMS,
    ContrastiveProblem,
    ContrastiveSums,
)
from crossalign.contrastive.terms import (
    ContrastiveStats,
    TermRules,
    counted_weights,
    stat_rows,
    term_rules,
    warn_without_negatives,
    warn_without_positives,
)
from crossalign.distributed.gather import ShardLayout, agree_on_backward, gather_rows
from crossalign.distributed.rank_agreement import check_group, graph_break

_NAME = "fused_contrastive_loss"


class _Schedule(NamedTuple):
    """How queries reach the candidates of other ranks; the functions have docstrings."""

    problem: Callable[[ContrastiveProblem, ShardedBatch], ContrastiveProblem]
    sums: Callable[..., tuple[ContrastiveSums, Tensor]]
    gradients: Callable[[BackwardPass], tuple[Tensor, Tensor | None, Tensor | None, Tensor]]


_SCHEDULES = {
    "all_gather": _Schedule(gathered_problem, gathered_sums, gathered_gradients),
    "ring": _Schedule(lambda problem, batch: problem, ring_sums, ring_gradients),
}


def loss_across_ranks(arguments: LossArguments) -> Tensor | tuple[Tensor, ContrastiveStats]:
    """fused_contrastive_loss where a group is given; arguments as yet unchecked.

    Cost beside the arithmetic, which is 1 / W of the whole on each rank: an exchange of records
    that the host waits for; then, for each pass (query_to_key and key_to_query share one), with
    "all_gather" one gather of the candidates, one exchange of up to five numbers per key, and in
    backward one gather of as many and one reduce-scatter of the candidates' gradients. With "ring"
    W - 1 (backward W) transfers between neighbors.
    """
    result: Tensor | tuple[Tensor, ContrastiveStats] = graph_break(_loss_across_ranks)(arguments)
    return result


def _loss_across_ranks(arguments: LossArguments) -> Tensor | tuple[Tensor, ContrastiveStats]:
    check_group(_NAME, arguments.options.group)
    arguments, records = agree_on_arguments(arguments)
    arguments = fill_missing(arguments, records)
    check_owner_given(arguments)
    if sum(record["rows"] for record in records) == 0:
        raise ValueError(
            f"{_NAME}: some rank of the group must have a row, got {len(records)} empty"
        )
    batch = sharded_batch(arguments, records)
    num_candidates = sum(record["keys"] + record["negatives"] for record in records)
    schedule = _SCHEDULES[
        choose_schedule(arguments.options.gather, num_candidates, arguments.query, records)
    ]
    first = query_key_pass(arguments)
    passes = all_passes(arguments, first)
    scale = first.problem.scale
    need_scale = scale.requires_grad
    tensors = (arguments.query, arguments.key, arguments.negatives)
    given = [*tensors, scale]
    is_part = any(x.requires_grad for x in given if x is not None)
    if not is_part and any(record["needs gradient"] for record in records):
        scale = scale.detach().requires_grad_()  # this rank, too, takes part in the backward
    sharded = [_ShardedPass(each, batch.of_pass(each)) for each in passes.values()]
    outputs = _SumsAcrossRanks.apply(  # type: ignore[no-untyped-call]
        *tensors, scale, sharded, schedule, need_scale
    )
    all_sums = [ContrastiveSums(*part) for part in _parts(outputs, _NUM_SUMS)]
    rules = term_rules(arguments, scale)
    blocks = blocks_of(passes, all_sums)
    terms = combined_terms(all_sums[0], blocks, rules, arguments.options, batch.use_triton)
    rests = [block.rest for block in blocks.values()]
    return _reduce(arguments, terms, all_sums[0], rests, rules, batch)


_NUM_SUMS = len(ContrastiveSums._fields)


def _parts(values: Sequence[Any], size: int) -> list[Sequence[Any]]:
    return [values[first : first + size] for first in range(0, len(values), size)]


class _ShardedPass(NamedTuple):
    """A pass and the batch as it sees it."""

    given: Pass
    batch: ShardedBatch

    def tensors(
        self, query: Tensor, key: Tensor, negatives: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        sides = {"query": query, "key": key}
        if not self.given.with_negatives:
            negatives = negatives[:0]
        return sides[self.given.query], sides[self.given.key], negatives


class _SumsAcrossRanks(torch.autograd.Function):
    """(query, key, negatives, scale) -> the sums of this rank's rows, of one pass after another."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        negatives: Tensor,
        scale: Tensor,
        passes: list[_ShardedPass],
        schedule: _Schedule,
        need_scale: bool,
    ) -> tuple[Tensor, ...]:
        outputs: list[Tensor] = []
        saved: list[Tensor] = [query, key, scale]
        ctx.problems, unlike = [], []
        for each in passes:
            rows, keys, further = each.tensors(query, key, negatives)
            problem = schedule.problem(each.given.problem._replace(scale=scale), each.batch)
            sums, candidates = schedule.sums(rows, keys, further, problem, each.batch)
            # The same storage must not be returned twice, as where a pass has no column terms.
            outputs += sums
            saved += [candidates, *sums]
            unlike += [getattr(sums, name) for name in NON_DIFFERENTIABLE_SUMS]
            ctx.problems.append(problem._replace(scale=None))  # type: ignore[arg-type]
        ctx.passes, ctx.schedule, ctx.need_scale = passes, schedule, need_scale
        ctx.save_for_backward(*saved)
        ctx.mark_non_differentiable(*unlike)
        ctx.set_materialize_grads(False)
        return tuple(outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
        agree_on_backward(_NAME, ctx.passes[0].batch.keys)
        query, key, scale, *saved = ctx.saved_tensors
        names = ("query", "key", "negatives", "scale")
        needed = dict(zip(names, (*ctx.needs_input_grad[:3], ctx.need_scale), strict=True))
        totals: dict[str, Tensor] = {}

        def add(name: str, gradient: Tensor | None) -> None:
            if gradient is not None and needed[name]:
                totals[name] = totals[name] + gradient if name in totals else gradient

        parts = zip(
            ctx.passes,
            ctx.problems,
            _parts(saved, 1 + _NUM_SUMS),
            _parts(upstream, _NUM_SUMS),
            strict=True,
        )
        for each, problem, (candidates, *fields), of_sums in parts:
            sums = ContrastiveSums(*fields)
            of_rows, of_keys, of_negatives, of_scale = ctx.schedule.gradients(
                BackwardPass(
                    query if each.given.query == "query" else key,
                    candidates,
                    problem._replace(scale=scale),
                    sums,
                    upstream_gradients(of_sums, sums),
                    each.batch,
                    needed[each.given.query],
                    ctx.need_scale,
                )
            )
            add(each.given.query, of_rows)
            add(each.given.key, of_keys)
            if each.given.with_negatives:
                add("negatives", of_negatives)
            add("scale", of_scale)
        return (*(totals.get(name) for name in names), None, None, None)


def _reduce(
    arguments: LossArguments,
    terms: Tensor,
    sums: ContrastiveSums,
    rests: Sequence[Tensor],
    rules: TermRules,
    batch: ShardedBatch,
) -> Tensor | tuple[Tensor, ContrastiveStats]:
    """W * this rank's part of the loss, or its terms; with the statistics of the whole batch."""
    reduction = arguments.options.reduction
    weights = None if arguments.weights is None else arguments.weights.detach().to(terms.dtype)
    if not rules.has_own_key:
        weights = counted_weights(sums, weights)
    num_ranks, num_rows = len(batch.keys.rows), batch.num_queries
    has_negatives = sum(batch.keys.rows) + sum(batch.negatives.rows) > 1
    divisor: Tensor | int = num_rows
    stats = None
    if weights is not None or batch.with_stats or terms.device.type == "cpu":
        totals = _totals(sums, weights, rests, rules, batch)
        if weights is not None:
            divisor = totals[0].to(terms.dtype)
        if values_may_be_read(totals):
            has_negatives = has_negatives and bool(totals[1] > 0)
            if rules.has_own_key and weights is not None and reduction == "mean" and not totals[0]:
                raise ValueError(
                    f'{_NAME}: weights must not all be 0 on all ranks with reduction="mean"'
                )
            if not rules.has_own_key and not totals[2]:
                warn_without_positives()
        if not rules.has_own_key:
            divisor = torch.where(totals[0] > 0, totals[0], 1).to(terms.dtype)
        if batch.with_stats:
            stats = ContrastiveStats(*(totals[3:] / totals[2].clamp_min(1)).float())
    if not has_negatives and rules.has_own_key:
        warn_without_negatives()
    if reduction == "none":
        loss = reduce_terms(terms, weights, "none")
    else:
        loss = reduce_terms(terms, weights, "sum") * num_ranks
    if reduction == "mean":
        loss = loss / divisor
    return loss if stats is None else (loss, stats)


def _totals(
    sums: ContrastiveSums,
    weights: Tensor | None,
    rests: Sequence[Tensor],
    rules: TermRules,
    batch: ShardedBatch,
) -> Tensor:
    """(3 or 7,) float64, of all ranks: weights, rows with a negative, rows that count, statistics.

    Added in rank order, so that every rank has the same bits.
    """
    ones = torch.ones_like(sums.positive_logit)
    rest = functools.reduce(torch.logaddexp, rests).detach()
    rows = [
        ones if weights is None else weights,
        rest != -torch.inf,
        ones if rules.has_own_key else sums.row_positive_count > 0,
    ]
    if batch.with_stats:
        rows.extend(stat_rows(sums, rules))
    totals = torch.stack([row.detach().double().sum() for row in rows])
    one_each = ShardLayout(batch.keys.group, batch.rank, (1,) * len(batch.keys.rows), None)
    return gather_rows(totals[None], one_each).sum(0)
