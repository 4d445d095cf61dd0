"""fused_sigmoid_loss over the ranks of a process group.

Each rank forms the terms of its own queries against the keys of all ranks, which it gathers once or
receives one shard at a time (ring_pass). Backward sums the keys' gradients at their owners. Terms
have no part that other ranks would have to hear of.

Shapes: N_r pairs of this rank, M of all, D features, W ranks.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from crossalign.argument_checks import values_may_be_read
from crossalign.contrastive.across_ranks.ring_pass import Traveling, circulate
from crossalign.contrastive.combine import reduce_terms
from crossalign.contrastive.problem import GradientNeeds
from crossalign.contrastive.sigmoid.agreement import (
    ShardedPairs,
    agree_on_arguments,
    fill_missing,
    sharded_pairs,
)
from crossalign.contrastive.sigmoid.arguments import NAME, build_problem
from crossalign.contrastive.sigmoid.ops import sigmoid_gradients, sigmoid_sums
from crossalign.contrastive.sigmoid.problem import (
    SigmoidArguments,
    SigmoidProblem,
    SigmoidSums,
)
from crossalign.distributed.gather import agree_on_backward, gather_rows, reduce_rows
from crossalign.distributed.rank_agreement import check_group, graph_break
from crossalign.precision import accumulator


def loss_across_ranks(arguments: SigmoidArguments) -> Tensor:
    """fused_sigmoid_loss where arguments.group is given; arguments as yet unchecked."""
    loss: Tensor = graph_break(_loss_across_ranks)(arguments)
    return loss


def _loss_across_ranks(arguments: SigmoidArguments) -> Tensor:
    check_group(NAME, arguments.group)
    records = agree_on_arguments(arguments)
    arguments = fill_missing(arguments, records)
    rows = [record["rows"] for record in records]
    if sum(rows) == 0:
        raise ValueError(f"{NAME}: some rank of the group must have a row, got {len(rows)} empty")
    batch, problem = sharded_pairs(arguments, records), build_problem(arguments)
    query, key, scale = arguments.query, arguments.key, problem.scale
    inputs = (query, key, scale, problem.bias)
    is_wanted = any(record["needs gradient"] for record in records)
    if is_wanted and not any(given.requires_grad for given in inputs):
        scale = scale.detach().requires_grad_()  # this rank, too, takes part in the backward
    terms = _TermsAcrossRanks.apply(  # type: ignore[no-untyped-call]
        query, key, scale, problem.bias, problem, batch
    )
    return _reduce(arguments, terms, batch)


class _TermsAcrossRanks(torch.autograd.Function):
    """(query, key, scale, bias) -> the terms of this rank's queries over the keys of all ranks."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        scale: Tensor,
        bias: Tensor,
        problem: SigmoidProblem,
        batch: ShardedPairs,
    ) -> Tensor:
        problem = problem._replace(scale=scale, bias=bias)
        if batch.schedule == "ring":
            keys = key.contiguous()
            sums = _ring_sums(query, keys, problem, batch)
        else:
            keys, problem = _gathered(key, problem, batch)
            sums = sigmoid_sums(query, keys, problem, use_triton=batch.use_triton)
        ctx.problem = problem._replace(scale=None, bias=None)  # type: ignore[arg-type]
        ctx.batch = batch
        ctx.save_for_backward(query, keys, scale, bias, *sums)
        return sums.terms

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_terms: Tensor) -> tuple[Tensor | None, ...]:
        agree_on_backward(NAME, ctx.batch.layout)
        query, keys, scale, bias, *sums = ctx.saved_tensors
        problem, batch = ctx.problem._replace(scale=scale, bias=bias), ctx.batch
        need_query, _, need_scale, need_bias = ctx.needs_input_grad[:4]
        needs = GradientNeeds(
            need_query, batch.key_needs_grad, need_scale or need_bias, is_partial=True
        )
        gradients = _ring_gradients if batch.schedule == "ring" else _gathered_gradients
        of_query, *others = gradients(
            query, keys, problem, SigmoidSums(*sums), grad_terms.contiguous(), needs, batch
        )
        return of_query if need_query else None, *others, None, None


def _gathered(
    key: Tensor, problem: SigmoidProblem, batch: ShardedPairs
) -> tuple[Tensor, SigmoidProblem]:
    """(the keys of all ranks (M, D), this rank's queries against them)."""
    key_ids = problem.key_ids
    if key_ids is not None:
        key_ids = gather_rows(key_ids[:, None], batch.layout)[:, 0].contiguous()
    label_offset = batch.first_row(batch.layout.rank)
    problem = problem._replace(key_ids=key_ids, label_offset=label_offset)
    return gather_rows(key, batch.layout), problem


def _gathered_gradients(
    query: Tensor,
    keys: Tensor,
    problem: SigmoidProblem,
    sums: SigmoidSums,
    grad_terms: Tensor,
    needs: GradientNeeds,
    batch: ShardedPairs,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """Of this rank's query and key, and of scale and bias (this rank's part)."""
    grad_query, grad_keys, grad_scale, grad_bias = sigmoid_gradients(
        query, keys, problem, sums, grad_terms, needs, use_triton=batch.use_triton
    )
    grad_key = reduce_rows(grad_keys, batch.layout, keys.dtype) if needs.candidates else None
    return grad_query.to(query.dtype), grad_key, grad_scale, grad_bias


def _block(
    problem: SigmoidProblem, batch: ShardedPairs, source: int, ids: list[Tensor]
) -> SigmoidProblem:
    """This rank's queries against the keys of rank `source`."""
    label_offset = batch.first_row(batch.layout.rank) - batch.first_row(source)
    return problem._replace(key_ids=ids[0] if ids else None, label_offset=label_offset)


def _shard(key: Tensor, problem: SigmoidProblem, batch: ShardedPairs) -> list[Traveling]:
    tensors = [key] if problem.key_ids is None else [key, problem.key_ids]
    return [Traveling(tensor, batch.layout.rows) for tensor in tensors]


def _ring_sums(
    query: Tensor, key: Tensor, problem: SigmoidProblem, batch: ShardedPairs
) -> SigmoidSums:
    """The terms over all keys, with the norms of this rank's."""
    total: list[SigmoidSums] = []

    def visit(source: int, shard: list[Tensor]) -> Tensor:
        block = _block(problem, batch, source, shard[1:])
        sums = sigmoid_sums(query, shard[0], block, use_triton=batch.use_triton)
        first = total[0] if total else None
        total[:] = [sums if first is None else first._replace(terms=first.terms + sums.terms)]
        return shard[0].new_empty((shard[0].shape[0], 0))  # a key has no sum of its own

    circulate(_shard(key, problem, batch), batch.layout, visit, torch.add, batch.layout.rows)
    return total[0]


def _ring_gradients(
    query: Tensor,
    key: Tensor,
    problem: SigmoidProblem,
    sums: SigmoidSums,
    grad_terms: Tensor,
    needs: GradientNeeds,
    batch: ShardedPairs,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """Of this rank's query and key, and of scale and bias (this rank's part)."""
    wide, rows = accumulator(query.dtype), batch.layout.rows
    grad_query = torch.zeros_like(query, dtype=wide)
    grad_scale, grad_bias = torch.zeros_like(problem.scale), torch.zeros_like(problem.bias)
    shard = _shard(key, problem, batch)
    num_ids = len(shard) - 1
    if problem.normalize:
        shard.append(Traveling(sums.key_inverse_norm, rows))

    def visit(source: int, arrived: list[Tensor]) -> Tensor:
        block = _block(problem, batch, source, arrived[1 : 1 + num_ids])
        norm = arrived[-1] if problem.normalize else sums.key_inverse_norm
        of_query, of_key, of_scale, of_bias = sigmoid_gradients(
            query,
            arrived[0],
            block,
            sums._replace(key_inverse_norm=norm),
            grad_terms,
            needs,
            use_triton=batch.use_triton,
        )
        if needs.query:
            grad_query.add_(of_query)
        grad_scale.add_(of_scale)
        grad_bias.add_(of_bias)
        return of_key if needs.candidates else of_key.new_empty((rows[source], 0))

    home = circulate(shard, batch.layout, visit, torch.add, rows)
    grad_key = home.to(key.dtype) if needs.candidates else None
    return grad_query.to(query.dtype), grad_key, grad_scale, grad_bias


def _reduce(arguments: SigmoidArguments, terms: Tensor, batch: ShardedPairs) -> Tensor:
    """W * this rank's part of the loss, or its terms."""
    weights = None if arguments.weights is None else arguments.weights.detach().to(terms.dtype)
    if arguments.reduction == "none":
        return reduce_terms(terms, weights, "none")
    loss = reduce_terms(terms, weights, "sum") * len(batch.layout.rows)
    if arguments.reduction == "sum":
        return loss
    if weights is None:
        return loss / sum(batch.layout.rows)
    one_each = batch.layout._replace(rows=(1,) * len(batch.layout.rows), workspace=None)
    # Added in rank order, so that every rank has the same bits.
    total = gather_rows(weights.double().sum()[None, None], one_each).sum()
    if values_may_be_read(total) and not total:
        raise ValueError(f'{NAME}: weights must not all be 0 on all ranks with reduction="mean"')
    return loss / total.to(terms.dtype)
