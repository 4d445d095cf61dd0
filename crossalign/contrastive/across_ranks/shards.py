"""What a rank knows of a batch spread over several, and the passes over one block of candidates.

Shapes: N_r pairs and H_r further negatives of rank r, M_r = N_r + H_r candidates, D features.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from crossalign.contrastive.blocks import Pass
from crossalign.contrastive.ops import contrastive_gradients, contrastive_sums
from crossalign.contrastive.problem import (
    ContrastiveGrads,
    ContrastiveProblem,
    ContrastiveSums,
    GradientNeeds,
)
from crossalign.distributed.gather import ShardLayout


class ShardedBatch(NamedTuple):
    """Where the rows lie, and what all ranks want of them."""

    num_queries: int  # of all ranks
    keys: ShardLayout  # of the keys, and but with key_ids of the queries too
    negatives: ShardLayout
    negatives_have_ids: bool
    keys_need_grad: bool  # on any rank, and so on for the others
    negatives_need_grad: bool
    queries_need_grad: bool
    with_stats: bool
    use_triton: bool

    @property
    def rank(self) -> int:
        return self.keys.rank

    def first_row(self, rank: int) -> int:
        """How many pairs lie on the ranks before this one."""
        return sum(self.keys.rows[:rank])

    def of_pass(self, given: Pass) -> ShardedBatch:
        """The batch as one pass sees it: its own queries, keys and negatives."""
        is_first = (given.query, given.key) == ("query", "key")
        batch = self._replace(with_stats=self.with_stats and is_first)
        if given.key == "query":
            batch = batch._replace(keys_need_grad=self.queries_need_grad)
        if not given.with_negatives:
            no_rows = self.negatives._replace(rows=(0,) * len(self.keys.rows))
            batch = batch._replace(
                negatives=no_rows, negatives_have_ids=False, negatives_need_grad=False
            )
        return batch

    def label_offset(self, problem: ContrastiveProblem, first_key: int, num_keys: int) -> int:
        """Of this rank's rows among keys of which the first is first_key of all; with key_ids
        there are no labels, and the offset lies past all keys."""
        has_label = problem.label_offset == 0
        if not has_label:
            return num_keys + self.num_queries
        return self.first_row(self.rank) - first_key


def block_sums(
    query: Tensor,
    candidates: Tensor,
    problem: ContrastiveProblem,
    batch: ShardedBatch,
    known_positive_logit: Tensor | None = None,
) -> ContrastiveSums:
    """This rank's queries (N_r, D) against any candidates; see contrastive_sums."""
    return contrastive_sums(
        query,
        candidates,
        problem,
        known_positive_logit=known_positive_logit,
        with_stats=batch.with_stats,
        use_triton=batch.use_triton,
    )


class BackwardPass(NamedTuple):
    """What the gradients of a rank, or of one block of its candidates, are formed from."""

    query: Tensor
    candidates: Tensor
    problem: ContrastiveProblem
    sums: ContrastiveSums
    grads: ContrastiveGrads
    batch: ShardedBatch
    need_query: bool
    need_scale: bool


def block_gradients(given: BackwardPass) -> tuple[Tensor, Tensor, Tensor]:
    """Of query, wanted candidates and scale, in the accumulator dtype; sums and grads are those of
    the whole batch."""
    query, candidates, problem, sums, grads, batch, need_query, need_scale = given
    wanted = wanted_candidates(batch, problem.num_keys, candidates.shape[0])
    needs = GradientNeeds(need_query, wanted.start < wanted.stop, need_scale, wanted, True)
    return contrastive_gradients(
        query, candidates, problem, sums, grads, needs, use_triton=batch.use_triton
    )


def wanted_candidates(batch: ShardedBatch, num_keys: int, num_candidates: int) -> slice:
    """The candidates whose gradient some rank needs, of keys that come before negatives."""
    first = 0 if batch.keys_need_grad else num_keys
    return slice(first, num_candidates if batch.negatives_need_grad else num_keys)


def column_parts(sums: ContrastiveSums, problem: ContrastiveProblem) -> Tensor:
    """(num_keys, 0 to 5): what one rank's queries contribute to the terms of the candidates.

    The first is a log-sum-exp, the others are sums.
    """
    if not problem.symmetric:
        return sums.positive_logit.new_empty((problem.num_keys, 0))
    names = ["column_negative_lse", *_column_sums(problem)]
    return torch.stack([getattr(sums, name) for name in names], 1)


def with_column_parts(
    sums: ContrastiveSums, parts: Tensor, problem: ContrastiveProblem
) -> ContrastiveSums:
    """The sums with the parts of this rank's own keys, from the queries of all ranks."""
    if not problem.symmetric:
        return sums
    names = ["column_negative_lse", *_column_sums(problem)]
    columns = (column.contiguous() for column in parts.unbind(1))
    return sums._replace(**dict(zip(names, columns, strict=True)))


def _column_sums(problem: ContrastiveProblem) -> list[str]:
    positives = ["column_positive_sum", "column_positive_count"] * problem.multi_positive
    return positives + ["column_logit_sum", "column_logit_count"] * problem.with_logit_sums


def _column_grads(problem: ContrastiveProblem) -> list[str]:
    return [name for name in _column_sums(problem) if name.endswith("sum")]


def column_coefficients(
    sums: ContrastiveSums, grads: ContrastiveGrads, problem: ContrastiveProblem
) -> Tensor:
    """(N_r, 0 or 2 to 4): what every rank's backward must know of this rank's keys."""
    if not problem.symmetric:
        return sums.positive_logit.new_empty((problem.num_keys, 0))
    coefficients = [sums.column_negative_lse, grads.column_negative_lse]
    coefficients += [getattr(grads, name) for name in _column_grads(problem)]
    return torch.stack(coefficients, 1)


def with_column_coefficients(
    sums: ContrastiveSums,
    grads: ContrastiveGrads,
    coefficients: Tensor,
    problem: ContrastiveProblem,
) -> tuple[ContrastiveSums, ContrastiveGrads]:
    """The sums and gradients of a block whose keys have these coefficients."""
    if not problem.symmetric:
        return sums, grads
    rest, grad_rest, *further = (column.contiguous() for column in coefficients.unbind(1))
    names = ["column_negative_lse", *_column_grads(problem)]
    of_grads = dict(zip(names, [grad_rest, *further], strict=True))
    return sums._replace(column_negative_lse=rest), grads._replace(**of_grads)
