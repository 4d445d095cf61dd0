"""What a rank knows of a batch that lies on several, and the passes over one block of candidates.

Shapes: N_r pairs and H_r further negatives of rank r, M_r = N_r + H_r candidates, D features.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

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

    keys: ShardLayout  # of the keys, hence of the queries too
    negatives: ShardLayout
    negatives_have_ids: bool
    keys_need_grad: bool  # on any rank, and so on for the negatives
    negatives_need_grad: bool
    with_stats: bool
    use_triton: bool

    @property
    def rank(self) -> int:
        return self.keys.rank

    def first_row(self, rank: int) -> int:
        """How many pairs lie on the ranks before this one."""
        return sum(self.keys.rows[:rank])


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


def block_gradients(
    query: Tensor,
    candidates: Tensor,
    problem: ContrastiveProblem,
    sums: ContrastiveSums,
    grads: ContrastiveGrads,
    batch: ShardedBatch,
    need_query: bool,
    need_scale: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Of query, wanted candidates and scale; sums and grads are those of the whole batch."""
    wanted = wanted_candidates(batch, problem.num_keys, candidates.shape[0])
    needs = GradientNeeds(need_query, wanted.start < wanted.stop, need_scale, wanted)
    return contrastive_gradients(
        query, candidates, problem, sums, grads, needs, use_triton=batch.use_triton
    )


def wanted_candidates(batch: ShardedBatch, num_keys: int, num_candidates: int) -> slice:
    """The candidates whose gradient some rank needs, of keys that come before negatives."""
    first = 0 if batch.keys_need_grad else num_keys
    return slice(first, num_candidates if batch.negatives_need_grad else num_keys)


def column_parts(sums: ContrastiveSums, problem: ContrastiveProblem) -> Tensor:
    """(num_keys, 0, 1 or 3): what one rank's queries contribute to the terms of the candidates."""
    if not problem.symmetric:
        return sums.positive_logit.new_empty((problem.num_keys, 0))
    parts = [sums.column_negative_lse]
    if problem.multi_positive:
        parts += [sums.column_positive_sum, sums.column_positive_count]
    return torch.stack(parts, 1)


def with_column_parts(
    sums: ContrastiveSums, parts: Tensor, problem: ContrastiveProblem
) -> ContrastiveSums:
    """The sums with the parts of this rank's own keys, from the queries of all ranks."""
    if problem.symmetric:
        sums = sums._replace(column_negative_lse=parts[:, 0].contiguous())
    if problem.symmetric and problem.multi_positive:
        sums = sums._replace(
            column_positive_sum=parts[:, 1].contiguous(),
            column_positive_count=parts[:, 2].contiguous(),
        )
    return sums


def column_coefficients(
    sums: ContrastiveSums, grads: ContrastiveGrads, problem: ContrastiveProblem
) -> Tensor:
    """(N_r, 0, 2 or 3): what every rank's backward must know of this rank's keys."""
    if not problem.symmetric:
        return sums.positive_logit.new_empty((sums.positive_logit.shape[0], 0))
    coefficients = [sums.column_negative_lse, grads.column_negative_lse]
    if problem.multi_positive:
        coefficients.append(grads.column_positive_sum)
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
    rest, grad_rest, *positive = (column.contiguous() for column in coefficients.unbind(1))
    sums = sums._replace(column_negative_lse=rest)
    grads = grads._replace(column_negative_lse=grad_rest)
    return sums, grads._replace(column_positive_sum=positive[0]) if positive else grads
