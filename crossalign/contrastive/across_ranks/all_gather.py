"""The sums of a sharded batch, with every rank's candidates gathered once and queries never.

A rank compares its queries with all candidates, so its row terms are whole; of the column terms it
has a part, which goes to the rank that owns the key: one log-sum-exp per key and rank instead of
a second product. Backward hands each key's coefficients to all ranks, forms the gradient of this
rank's queries against all candidates, and sums the candidates' gradients at their owners.

Shapes: N_r pairs and H_r further negatives of rank r, N, H and M = N + H of all, D features.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from crossalign.contrastive.across_ranks.shards import (
    BackwardPass,
    ShardedBatch,
    block_gradients,
    block_sums,
    column_coefficients,
    column_parts,
    with_column_coefficients,
    with_column_parts,
)
from crossalign.contrastive.problem import ContrastiveProblem, ContrastiveSums
from crossalign.distributed.gather import exchange_rows, gather_rows, reduce_rows
from crossalign.precision import concatenated


def gathered_problem(problem: ContrastiveProblem, batch: ShardedBatch) -> ContrastiveProblem:
    """This rank's problem -> its queries against the candidates of all ranks. Collective."""
    candidate_ids, guide = problem.candidate_ids, problem.candidate_guide
    if candidate_ids is not None:
        gathered = _gather_candidates(candidate_ids[:, None], batch, batch.negatives_have_ids)
        candidate_ids = gathered[:, 0].contiguous()
    if guide is not None:
        guide = _gather_candidates(guide, batch, has_negatives=True)
    limits: dict[str, Any] = {
        name: None if limit is None else gather_rows(limit[:, None], batch.keys)[:, 0].contiguous()
        for name, limit in (
            ("column_limit", problem.column_limit),
            ("column_guide_limit", problem.column_guide_limit),
        )
    }
    owner = problem.negative_owner
    if owner is not None:
        before, after = batch.negatives.rows[: batch.rank], batch.negatives.rows[batch.rank + 1 :]
        # -1: owned by a query of another rank.
        owner = F.pad(owner, (sum(before), sum(after)), value=-1)
    num_keys = sum(batch.keys.rows)
    return problem._replace(
        candidate_ids=candidate_ids,
        candidate_guide=guide,
        negative_owner=owner,
        num_keys=num_keys,
        label_offset=batch.label_offset(problem, 0, num_keys),
        **limits,
    )


def _gather_candidates(x: Tensor, batch: ShardedBatch, has_negatives: bool) -> Tensor:
    """Rows of this rank's keys and then negatives -> of all ranks' keys, then all negatives."""
    num_keys = batch.keys.rows[batch.rank]
    gathered = gather_rows(x[:num_keys], batch.keys)
    if not has_negatives or not sum(batch.negatives.rows):
        return gathered
    return concatenated([gathered, gather_rows(x[num_keys:], batch.negatives)])


def gathered_sums(
    query: Tensor, key: Tensor, negatives: Tensor, problem: ContrastiveProblem, batch: ShardedBatch
) -> tuple[ContrastiveSums, Tensor]:
    """(the sums of this rank's pairs, the gathered candidates (M, D) that backward needs)."""
    candidates = concatenated([key, negatives]) if len(negatives) else key
    candidates = _gather_candidates(candidates, batch, has_negatives=True)
    sums = block_sums(query, candidates, problem, batch)
    parts = column_parts(sums, problem)
    if problem.symmetric:
        of_ranks = exchange_rows(parts, batch.keys)
        rest = torch.logsumexp(of_ranks[:, :, :1], 0)
        parts = torch.cat([rest, of_ranks[:, :, 1:].sum(0)], 1)
    return with_column_parts(sums, parts, problem), candidates


def gathered_gradients(
    given: BackwardPass,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor]:
    """Of this rank's query, key, negatives, and of scale (this rank's part)."""
    query, candidates, problem, sums, grads, batch, *_ = given
    coefficients = column_coefficients(sums, grads, problem)
    if problem.symmetric:
        coefficients = gather_rows(coefficients, batch.keys)
    sums, grads = with_column_coefficients(sums, grads, coefficients, problem)
    grad_query, grad_candidates, grad_scale = block_gradients(
        given._replace(sums=sums, grads=grads)
    )
    grad_key = grad_negatives = None
    num_keys = problem.num_keys if batch.keys_need_grad else 0
    if batch.keys_need_grad:
        grad_key = reduce_rows(grad_candidates[:num_keys], batch.keys, candidates.dtype)
    if batch.negatives_need_grad:
        further = grad_candidates[num_keys:]
        grad_negatives = reduce_rows(further, batch.negatives, candidates.dtype)
    return grad_query.to(query.dtype), grad_key, grad_negatives, grad_scale
