"""Chunks of logits in plain PyTorch, and the products that turn their gradients into embeddings'.

What the chunked passes share: one reused workspace of a few rows of logits, norms, positives.

Shape suffixes: R rows of a chunk, N queries, M candidates, K of them keys, D features.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from crossalign.contrastive.problem import ContrastiveProblem, GradientNeeds, label_range
from crossalign.precision import NORM_FLOOR, accumulator

# Logits per chunk. On a CPU 2^22 float32 (16 MiB) are many enough rows for efficient products and
# stay near the cores between the passes over them; a GPU needs larger products to be busy. At
# least MIN_ROWS rows, however many candidates there are.
CPU_CHUNK_LOGITS = 2**22
GPU_CHUNK_LOGITS = 2**26
MIN_ROWS = 64


def inverse_norms(x: Tensor) -> Tensor:
    """(n, D) -> (n,) 1 / max(||x||, 1e-12) in the accumulator dtype."""
    norms: Tensor = torch.linalg.vector_norm(x, dim=1, dtype=accumulator(x.dtype))
    return norms.clamp_min(NORM_FLOOR).reciprocal()


def normalize_backward(grad_unit: Tensor, x: Tensor, inverse_norm: Tensor) -> Tensor:
    """Gradient of x given that of x / max(||x||, floor): (g - u <u, g>) / ||x||, u the unit row."""
    unit = x.to(grad_unit.dtype) * inverse_norm[:, None]
    # Below the floor the divisor is a constant, so nothing is projected away.
    projected = (unit * grad_unit).sum(1, keepdim=True)
    projected = projected.masked_fill(inverse_norm[:, None] >= 1 / NORM_FLOOR, 0)
    return unit.mul_(-projected).add_(grad_unit).mul_(inverse_norm[:, None])


class LogitChunks:
    """Yields chunks of logits in one reused workspace, exclusions and weights applied."""

    def __init__(self, query: Tensor, candidates: Tensor, problem: ContrastiveProblem) -> None:
        self.query, self.candidates, self.problem = query, candidates, problem
        self.dtype = accumulator(query.dtype)
        none = query.new_empty(0, dtype=self.dtype)
        self.query_inverse_norm = inverse_norms(query) if problem.normalize else none
        # The outputs of an op may not share storage.
        self.candidate_inverse_norm = (
            inverse_norms(candidates) if problem.normalize else none.clone()
        )
        self.candidates_MD = candidates.to(self.dtype)
        if problem.normalize:
            self.candidates_MD = self.candidates_MD * self.candidate_inverse_norm[:, None]
        budget = CPU_CHUNK_LOGITS if query.device.type == "cpu" else GPU_CHUNK_LOGITS
        num_rows = min(query.shape[0], max(MIN_ROWS, budget // max(1, candidates.shape[0])))
        # Column by column: so the BLAS of a CPU forms the few rows of logits a tenth faster.
        self.workspace_RM = query.new_empty(candidates.shape[0], num_rows, dtype=self.dtype).T

    def scaled_queries(self, rows: slice) -> Tensor:
        """(R, D) queries times 1 / temperature, normalised if asked."""
        query_RD = self.query[rows].to(self.dtype)
        if self.problem.normalize:
            return query_RD * (self.query_inverse_norm[rows, None] * self.problem.scale)
        return query_RD * self.problem.scale

    def __iter__(self) -> Iterator[tuple[slice, Tensor, Tensor, Tensor | None]]:
        """(rows, scaled queries (R, D), logits (R, M), further positives (R, M) or None).

        The logits still hold the positives; every excluded logit is -inf.
        """
        num_queries = self.query.shape[0]
        step = max(1, self.workspace_RM.shape[0])
        for first in range(0, num_queries, step):
            rows = slice(first, min(first + step, num_queries))
            query_RD = self.scaled_queries(rows)
            logits_RM = self.workspace_RM[: query_RD.shape[0]]
            torch.mm(query_RD, self.candidates_MD.T, out=logits_RM)
            self._apply_owners(logits_RM, rows)
            yield rows, query_RD, logits_RM, self._apply_ids(logits_RM, rows)

    def _apply_owners(self, logits_RM: Tensor, rows: slice) -> None:
        problem = self.problem
        if problem.negative_owner is None:
            return
        row_index = torch.arange(rows.start, rows.stop, device=logits_RM.device)
        is_owned = row_index[:, None] == problem.negative_owner[None, :]
        negatives = logits_RM[:, problem.num_keys :]
        if problem.hard_negative_weight:
            negatives.add_(is_owned, alpha=problem.hard_negative_weight)
        if not problem.share_negatives:
            negatives.masked_fill_(is_owned.logical_not_(), -torch.inf)

    def _apply_ids(self, logits_RM: Tensor, rows: slice) -> Tensor | None:
        """Excludes equal ids, the positive apart, or returns where further positives stand."""
        problem = self.problem
        if problem.query_ids is None or problem.candidate_ids is None:
            return None
        num_ids = problem.candidate_ids.shape[0]
        is_equal = problem.query_ids[rows, None] == problem.candidate_ids[None, :]
        label_view(is_equal, problem, rows).fill_(False)
        if not problem.multi_positive:
            logits_RM[:, :num_ids].masked_fill_(is_equal, -torch.inf)
            return None
        positives_RM = is_equal.new_zeros(logits_RM.shape)
        positives_RM[:, :num_ids] = is_equal.logical_and_(logits_RM[:, :num_ids] != -torch.inf)
        return positives_RM


def label_view(tile_RM: Tensor, problem: ContrastiveProblem, rows: slice) -> Tensor:
    """The positives of a chunk's rows, as a view of its diagonal."""
    first_row, first_column, count = label_range(problem, rows.start, rows.stop)
    if count == 0:
        return tile_RM.new_empty(0)
    row = first_row - rows.start
    return tile_RM[row : row + count, first_column : first_column + count].diagonal()


class GradientSums:
    """Gradients of queries, candidates and scale, added up chunk by chunk.

    With G = d loss / d logits: grad_query^ = scale * G @ candidates^, grad_candidates^ = scale *
    G.T @ query^, and since the product of either side with its gradient is the same,
    grad_scale = sum_i <(G @ candidates^)_i, query^_i>. A product that nobody needs is not formed.
    """

    def __init__(
        self, chunks: LogitChunks, dtype: torch.dtype, needs: GradientNeeds | None = None
    ) -> None:
        """dtype: of the gradients of the queries and of the candidates; needs: default all."""
        self.chunks, self.needs = chunks, needs or GradientNeeds()
        num_queries, num_features = chunks.query.shape
        num_candidates = chunks.candidates_MD.shape[0]
        self.wanted = self.needs.wanted(num_candidates)
        num_wanted = self.wanted.stop - self.wanted.start
        # The scale's gradient follows from that of either side, if that is whole.
        self.candidates_tell_scale = num_wanted == num_candidates and not self.needs.query
        self.grad_query_ND = chunks.query.new_empty(
            num_queries if self.needs.query else 0, num_features, dtype=dtype
        )
        self.grad_candidates_MD = chunks.candidates_MD.new_zeros(num_wanted, num_features)
        self.grad_scale = torch.zeros_like(chunks.problem.scale)

    def add(self, rows: slice, query_RD: Tensor, grad_logits_RM: Tensor) -> None:
        """query_RD: the scaled queries of these rows; grad_logits_RM: G."""
        chunks, needs, scale = self.chunks, self.needs, self.chunks.problem.scale
        if len(self.grad_candidates_MD):
            self.grad_candidates_MD.addmm_(grad_logits_RM[:, self.wanted].T, query_RD)
        if not needs.query and (self.candidates_tell_scale or not needs.scale):
            return
        grad_RD = grad_logits_RM @ chunks.candidates_MD
        self.grad_scale += (grad_RD * query_RD).sum() / scale
        if not needs.query:
            return
        grad_RD *= scale
        if chunks.problem.normalize:
            inverse_norm = chunks.query_inverse_norm[rows]
            grad_RD = normalize_backward(grad_RD, chunks.query[rows], inverse_norm)
        self.grad_query_ND[rows] = grad_RD

    def result(self) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of (query (N, D), candidates (M, D), scale ()); unneeded ones have no rows."""
        chunks, grad_candidates_MD = self.chunks, self.grad_candidates_MD
        if self.needs.scale and self.candidates_tell_scale:
            total = (grad_candidates_MD * chunks.candidates_MD).sum()
            self.grad_scale = total / chunks.problem.scale
        if chunks.problem.normalize and len(grad_candidates_MD):
            inverse_norm = chunks.candidate_inverse_norm[self.wanted]
            grad_candidates_MD = normalize_backward(
                grad_candidates_MD, chunks.candidates[self.wanted], inverse_norm
            )
        grad_candidates_MD = grad_candidates_MD.to(self.grad_query_ND.dtype)
        return self.grad_query_ND, grad_candidates_MD, self.grad_scale
