"""The sums of a spread batch with no rank ever holding more candidates than a few shards.

The shards of candidates go round: in step t rank r meets the candidates of rank r - t while those
of
rank r - t - 1 are on their way to it. What the queries met so far contribute to a shard's column
terms, and in backward to its gradient, follows one step behind the shard, is added to what this
rank contributes, and after the last step comes home. Every sum has a fixed order: a query's over
the ranks r, r - 1, ..., a column's over the ranks r, r + 1, ...

Shapes: N_r pairs and H_r further negatives of rank r, M_r = N_r + H_r candidates, D features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from crossalign.contrastive.across_ranks.shards import (
    SpreadBatch,
    block_gradients,
    block_sums,
    column_coefficients,
    column_parts,
    with_column_coefficients,
    with_column_parts,
)
from crossalign.contrastive.problem import (
    ContrastiveGrads,
    ContrastiveProblem,
    ContrastiveSums,
    accumulator,
)
from crossalign.distributed.rank_agreement import transport_device


class _Travelling(NamedTuple):
    """A tensor of every shard: this rank's, and how many rows each rank's has."""

    tensor: Tensor
    rows: Sequence[int]


def ring_sums(
    query: Tensor, key: Tensor, negatives: Tensor, problem: ContrastiveProblem, batch: SpreadBatch
) -> tuple[ContrastiveSums, Tensor]:
    """(the sums of this rank's pairs, its positives (M_r, D))."""
    candidates = torch.cat([key, negatives]) if len(negatives) else key.contiguous()
    totals: list[ContrastiveSums] = []

    def visit(source: int, shard: list[Tensor]) -> Tensor:
        block = _block_problem(problem, batch, source, *shard[1:])
        known_positive_logit = totals[-1].positive_logit if totals else None
        sums = block_sums(query, shard[0], block, batch, known_positive_logit)
        totals[:] = [_add_rows(totals[0], sums) if totals else sums]
        return column_parts(sums, block)

    parts = _circulate(
        _shard(candidates, problem, batch), batch, visit, _combine_parts, batch.keys.rows
    )
    return with_column_parts(totals[0], parts, problem), candidates


def ring_gradients(
    query: Tensor,
    candidates: Tensor,
    problem: ContrastiveProblem,
    sums: ContrastiveSums,
    grads: ContrastiveGrads,
    batch: SpreadBatch,
    need_scale_grad: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor]:
    """Of this rank's query, key, negatives, and of scale (this rank's part)."""
    wide = accumulator(query.dtype)
    grad_query = torch.zeros_like(query, dtype=wide)
    grad_scale = torch.zeros_like(problem.scale)
    is_wanted = batch.keys_need_grad or batch.negatives_need_grad
    num_candidates = _rows_of_columns(batch)
    coefficients = column_coefficients(sums, grads, problem)
    shard = _shard(candidates, problem, batch)
    shard.append(_Travelling(coefficients, batch.keys.rows))
    if problem.normalize:
        shard.append(_Travelling(sums.candidate_inverse_norm, num_candidates))

    def visit(source: int, arrived: list[Tensor]) -> Tensor:
        ids = arrived[1:2] if problem.candidate_ids is not None else []
        block = _block_problem(problem, batch, source, *ids)
        coefficients, *inverse_norm = arrived[1 + len(ids) :]
        block_sums, block_grads = with_column_coefficients(sums, grads, coefficients, block)
        if inverse_norm:
            block_sums = block_sums._replace(candidate_inverse_norm=inverse_norm[0])
        of_query, of_columns, of_scale = block_gradients(
            query, arrived[0], block, block_sums, block_grads, batch, need_scale_grad
        )
        grad_query.add_(of_query)
        grad_scale.add_(of_scale)
        return of_columns.to(wide) if is_wanted else of_columns.new_empty((len(of_columns), 0))

    grad_candidates = _circulate(shard, batch, visit, torch.add, num_candidates)
    grad_key = grad_negatives = None
    if is_wanted:
        grad_candidates = grad_candidates.to(candidates.dtype)
        num_keys = batch.keys.rows[batch.rank]
        grad_key, grad_negatives = grad_candidates[:num_keys], grad_candidates[num_keys:]
    return grad_query.to(query.dtype), grad_key, grad_negatives, grad_scale


def _rows_of_columns(batch: SpreadBatch) -> list[int]:
    pairs = zip(batch.keys.rows, batch.negatives.rows, strict=True)
    return [keys + negatives for keys, negatives in pairs]


def _shard(
    candidates: Tensor, problem: ContrastiveProblem, batch: SpreadBatch
) -> list[_Travelling]:
    rows = _rows_of_columns(batch)
    shard = [_Travelling(candidates, rows)]
    if problem.candidate_ids is not None:
        with_id = rows if batch.negatives_have_ids else batch.keys.rows
        shard.append(_Travelling(problem.candidate_ids, with_id))
    return shard


def _block_problem(
    problem: ContrastiveProblem,
    batch: SpreadBatch,
    source: int,
    candidate_ids: Tensor | None = None,
) -> ContrastiveProblem:
    """This rank's queries against the candidates of rank `source`."""
    owner = problem.negative_owner
    if owner is not None and source != batch.rank:
        owner = owner.new_full((batch.negatives.rows[source],), -1)  # none of them is owned here
    return problem._replace(
        candidate_ids=candidate_ids,
        negative_owner=owner,
        num_keys=batch.keys.rows[source],
        label_offset=batch.first_row(batch.rank) - batch.first_row(source),
    )


def _add_rows(total: ContrastiveSums, sums: ContrastiveSums) -> ContrastiveSums:
    """The first block's sums, with what further candidates add to those of the rows."""
    return total._replace(
        row_negative_lse=torch.logaddexp(total.row_negative_lse, sums.row_negative_lse),
        row_positive_sum=total.row_positive_sum + sums.row_positive_sum,
        row_positive_count=total.row_positive_count + sums.row_positive_count,
        num_above=total.num_above + sums.num_above,
        num_tied=total.num_tied + sums.num_tied,
    )


def _combine_parts(before: Tensor, here: Tensor) -> Tensor:
    """(num_keys, 0, 1 or 3): the first is a log-sum-exp, the others are sums."""
    return torch.cat([torch.logaddexp(before[:, :1], here[:, :1]), before[:, 1:] + here[:, 1:]], 1)


def _circulate(
    shard: Sequence[_Travelling],
    batch: SpreadBatch,
    visit: Callable[[int, list[Tensor]], Tensor],
    combine: Callable[[Tensor, Tensor], Tensor],
    rows: Sequence[int],
) -> Tensor:
    """Takes every rank's shard past every rank; what all visits gave for this rank's, combined.

    visit(source, tensors) sees the shard of rank `source` and gives rows[source] rows.
    """
    size = len(batch.keys.rows)
    tensors = [travelling.tensor for travelling in shard]
    visited: Tensor | None = None
    for step in range(size):
        source = (batch.rank - step) % size
        outgoing: list[tuple[Tensor, int]] = []
        if step + 1 < size:
            next_rows = [travelling.rows[source - 1] for travelling in shard]
            outgoing += zip(tensors, next_rows, strict=True)
        if visited is not None:
            outgoing.append((visited, rows[source]))
        passing = _Passing(outgoing, batch)
        here = visit(source, tensors)
        arrived = passing.wait()
        visited = here if visited is None else combine(arrived.pop(), here)
        tensors = arrived
    assert visited is not None
    if size == 1:
        return visited
    (home,) = _Passing([(visited, rows[batch.rank])], batch).wait()
    return home


class _Passing:
    """Tensors on their way to the next rank, and from the one before."""

    def __init__(self, outgoing: Sequence[tuple[Tensor, int]], batch: SpreadBatch) -> None:
        """outgoing: each tensor, and how many rows its like from the rank before has."""
        group, rank, size = batch.keys.group, batch.rank, len(batch.keys.rows)
        self.arriving: list[Tensor] = []
        self.devices = [tensor.device for tensor, _ in outgoing]
        operations = []
        for tag, (tensor, rows) in enumerate(outgoing):
            sent = tensor.to(transport_device(group, tensor.device)).contiguous()
            buffer = sent.new_empty((rows, *sent.shape[1:]))
            self.arriving.append(buffer)
            for way, moved, peer in ((dist.isend, sent, rank + 1), (dist.irecv, buffer, rank - 1)):
                if moved.numel():
                    # As bytes: no backend has to know the dtype.
                    as_bytes = moved.view(torch.uint8)
                    operation = dist.P2POp(
                        way, as_bytes, group=group, tag=tag, group_peer=peer % size
                    )
                    operations.append(operation)
        self.works = dist.batch_isend_irecv(operations) if operations else []

    def wait(self) -> list[Tensor]:
        for work in self.works:
            work.wait()
        return [
            tensor.to(device) for tensor, device in zip(self.arriving, self.devices, strict=True)
        ]
