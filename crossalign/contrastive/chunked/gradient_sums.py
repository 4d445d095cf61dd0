"""From gradients of logits, chunk by chunk, to those of the embeddings and of the scale.

Shape suffixes: R rows of a chunk, N queries, M candidates, D features.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from crossalign.contrastive.chunked.chunk import Chunk
from crossalign.contrastive.chunked.norms import normalize_backward
from crossalign.contrastive.chunked.torch_logits import LogitChunks
from crossalign.contrastive.problem import GradientNeeds, label_range


class RowParts(NamedTuple):
    """Gradients of a chunk's logits as a sum of parts, of which only one has R x M elements: G =
    factor * what stands in the workspace + shift, and at the label a number more. The chunk's
    columns are all candidates."""

    factor_R: Tensor
    shift_R: Tensor | None
    labels: Tensor  # of those of the rows that have theirs here


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
        self.shift_D: Tensor | None = None  # what every candidate's gradient still lacks

    def add(self, chunk: Chunk, parts: RowParts | None = None) -> None:
        """parts: what chunk.logits_RM is one of; None: it is the whole of G."""
        chunks, needs, scale = self.chunks, self.needs, self.chunks.problem.scale
        rows, columns, query_RD, grad_logits_RM = chunk[:4]
        first, last = max(self.wanted.start, columns.start), self.wanted.stop
        if first < last:
            part_RM = grad_logits_RM[:, first - columns.start : last - columns.start]
            here = slice(first - self.wanted.start, last - self.wanted.start)
            factored_RD = query_RD if parts is None else query_RD * parts.factor_R[:, None]
            self.grad_candidates_MD[here].addmm_(part_RM.T, factored_RD)
            if parts is not None:
                self._add_small_parts(chunk, parts)
        if not needs.query and (self.candidates_tell_scale or not needs.scale):
            return
        grad_RD = grad_logits_RM @ chunks.candidates_MD[columns]
        if parts is not None:
            self._finish_rows(grad_RD, chunk, parts)
        if needs.scale and not self.candidates_tell_scale:
            self.grad_scale += (grad_RD * query_RD).sum() / scale
        if not needs.query:
            return
        grad_RD *= scale
        if chunks.problem.normalize:
            inverse_norm = chunks.query_inverse_norm[rows]
            grad_RD = normalize_backward(grad_RD, chunks.query[rows], inverse_norm)
        self.grad_query_ND[rows] = grad_RD

    def _add_small_parts(self, chunk: Chunk, parts: RowParts) -> None:
        """To the candidates' gradients: what the labels and the shift of these rows give."""
        row, column, count = label_range(self.chunks.problem, chunk.rows.start, chunk.rows.stop)
        first, last = max(column, self.wanted.start), min(column + count, self.wanted.stop)
        if first < last:
            here = slice(first - self.wanted.start, last - self.wanted.start)
            row += first - column - chunk.rows.start
            query_LD = chunk.query_RD[row : row + last - first]
            labels = parts.labels[first - column : last - column, None]
            self.grad_candidates_MD[here].addcmul_(query_LD, labels)
        if parts.shift_R is not None:
            of_shift = parts.shift_R @ chunk.query_RD
            self.shift_D = of_shift if self.shift_D is None else self.shift_D + of_shift

    def _finish_rows(self, grad_RD: Tensor, chunk: Chunk, parts: RowParts) -> None:
        """From factorless sums over the candidates to those of G, in place."""
        grad_RD.mul_(parts.factor_R[:, None])
        candidates_MD = self.chunks.candidates_MD
        row, column, count = label_range(self.chunks.problem, chunk.rows.start, chunk.rows.stop)
        row -= chunk.rows.start
        of_labels = candidates_MD[column : column + count]
        grad_RD[row : row + count].addcmul_(of_labels, parts.labels[:, None])
        if parts.shift_R is not None:
            grad_RD.addr_(parts.shift_R, self.chunks.candidate_sum_D)

    def result(self) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of (query (N, D), candidates (M, D), scale ()); unneeded ones have no rows."""
        chunks, grad_candidates_MD = self.chunks, self.grad_candidates_MD
        if self.shift_D is not None:
            grad_candidates_MD += self.shift_D
        if self.needs.scale and self.candidates_tell_scale:
            total = (grad_candidates_MD * chunks.candidates_MD).sum()
            self.grad_scale += total / chunks.problem.scale
        if chunks.problem.normalize and len(grad_candidates_MD):
            inverse_norm = chunks.candidate_inverse_norm[self.wanted]
            grad_candidates_MD = normalize_backward(
                grad_candidates_MD, chunks.candidates[self.wanted], inverse_norm
            )
        grad_candidates_MD = grad_candidates_MD.to(self.grad_query_ND.dtype)
        return self.grad_query_ND, grad_candidates_MD, self.grad_scale
