"""Chunks of logits in plain PyTorch: one reused workspace of a few rows, positives.

Shape suffixes: R rows of a chunk, N queries, M candidates, K of them keys, D features.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from crossalign.contrastive.chunked.chunk import Chunk, by_columns, label_view
from crossalign.contrastive.chunked.equal_ids import equal_pairs
from crossalign.contrastive.chunked.norms import inverse_norms
from crossalign.contrastive.problem import ContrastiveProblem
from crossalign.precision import accumulator

# Logits per chunk. On a CPU 2^22 float32 (16 MiB) are many enough rows for efficient products and
# stay near the cores between the passes over them; a GPU needs larger products to be busy. At
# least MIN_ROWS rows, however many candidates there are.
CPU_CHUNK_LOGITS = 2**22
GPU_CHUNK_LOGITS = 2**26
MIN_ROWS = 64
# With same_side a chunk skips the candidates before its first row, and forms its block on the
# diagonal twice over: with 8 chunks that is a ninth of the logits.
SAME_SIDE_CHUNKS = 8


class LogitChunks:
    """Yields chunks of logits in one reused workspace, exclusions and weights applied."""

    def __init__(
        self,
        query: Tensor,
        candidates: Tensor,
        problem: ContrastiveProblem,
        *,
        may_compare_late: bool = False,
        kept: Tensor | None = None,
    ) -> None:
        """may_compare_late: the caller applies a chunk's limits where it forms exponentials; kept:
        see empty_kept; the last chunks lie there, not in the workspace."""
        self.query, self.candidates, self.problem = query, candidates, problem
        self.compares_late = may_compare_late and _needs_limits_only_in_sums(problem)
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
        if problem.same_side:  # of the blocks on the diagonal both halves are formed: small ones
            num_rows = min(num_rows, max(MIN_ROWS, query.shape[0] // SAME_SIDE_CHUNKS))
        self.equal_pairs = equal_pairs(problem)
        self._candidate_sum_D: Tensor | None = None
        self.num_rows, self.kept = max(1, num_rows), kept
        self._workspace: Tensor | None = None

    @property
    def workspace_RM(self) -> Tensor:
        """Room for the largest chunk."""
        if self._workspace is None:
            num_rows = min(self.num_rows, self.query.shape[0])
            size = num_rows * self.candidates.shape[0]
            flat = self.query.new_empty(size, dtype=self.dtype)
            self._workspace = by_columns(flat, num_rows, self.candidates.shape[0])
        return self._workspace

    @property
    def is_two_sided(self) -> bool:
        """Whether logits serve the terms of their columns too."""
        return self.problem.symmetric or self.problem.same_side

    @property
    def keeps_all(self) -> bool:
        """Whether logits are scaled products, of which only labels are left out."""
        problem = self.problem
        changing = (problem.query_ids, problem.negative_owner, problem.row_limit)
        is_changed = any(each is not None for each in (*changing, problem.query_guide))
        return not is_changed and not problem.hardness

    @property
    def candidate_sum_D(self) -> Tensor:
        """The sum of all candidates: what gives the sum of a row's logits in one product."""
        if self._candidate_sum_D is None:
            self._candidate_sum_D = self.candidates_MD.sum(0)
        return self._candidate_sum_D

    def scaled_queries(self, rows: slice) -> Tensor:
        """(R, D) queries times 1 / temperature, normalized if asked."""
        query_RD = self.query[rows].to(self.dtype)
        if self.problem.normalize:
            return query_RD * (self.query_inverse_norm[rows, None] * self.problem.scale)
        return query_RD * self.problem.scale

    def __iter__(self) -> Iterator[Chunk]:
        for rows, columns, kept_RM in self._places():
            yield self._formed(rows, columns, kept_RM)

    def with_kept(self) -> Iterator[tuple[Chunk, Tensor | None]]:
        """Each chunk, and its exponentials, if they were kept. The logits of such a chunk are not
        formed: it has room for them in the workspace."""
        for rows, columns, kept_RM in self._places():
            if kept_RM is None:
                yield self._formed(rows, columns, None), None
                continue
            logits_RM = self._room(rows, columns)
            keys = self._keys(rows)
            column_part = slice(keys.start - columns.start, keys.stop - columns.start)
            labels = label_view(logits_RM, self.problem, rows, columns.start)
            yield Chunk(
                rows, columns, self.scaled_queries(rows), logits_RM, labels, labels, None, None,
                None, None, None, column_part, keys, self.keeps_all,
            ), kept_RM  # fmt: skip

    def _formed(self, rows: slice, columns: slice, place_RM: Tensor | None) -> Chunk:
        query_RD = self.scaled_queries(rows)
        logits_RM = self._room(rows, columns) if place_RM is None else place_RM
        torch.mm(query_RD, self.candidates_MD[columns].T, out=logits_RM)
        if not self.problem.normalize:  # -inf is from here on what is left out
            logits_RM.nan_to_num_(torch.nan, torch.nan, torch.nan)
        return self._chunk(rows, columns, query_RD, logits_RM)

    def _keys(self, rows: slice) -> slice:
        """Of the columns' terms, those that a chunk's logits serve."""
        if self.problem.symmetric:
            return slice(0, self.problem.num_keys)
        return slice(rows.stop, self.problem.num_keys) if self.problem.same_side else slice(0, 0)

    def _room(self, rows: slice, columns: slice) -> Tensor:
        """(R, M) of the workspace."""
        return self.workspace_RM[: rows.stop - rows.start, columns]

    def _places(self) -> list[tuple[slice, slice, Tensor | None]]:
        """The rows and columns of each chunk, and where it is kept: the last ones are."""
        num_queries, num_candidates = self.query.shape[0], self.candidates.shape[0]
        places: list[tuple[slice, slice, Tensor | None]] = []
        free = 0 if self.kept is None else self.kept.numel()
        for first in reversed(range(0, num_queries, self.num_rows)):
            rows = slice(first, min(first + self.num_rows, num_queries))
            # Of a symmetric matrix the part left of the diagonal has been seen as its mirror image.
            columns = slice(first if self.problem.same_side else 0, num_candidates)
            num_rows, num_columns = rows.stop - rows.start, columns.stop - columns.start
            kept_RM, free = None, free - num_rows * num_columns
            if self.kept is not None and free >= 0:
                flat = self.kept[free : free + num_rows * num_columns]
                kept_RM = by_columns(flat, num_rows, num_columns)
            places.append((rows, columns, kept_RM))
        return places[::-1]

    def _chunk(self, rows: slice, columns: slice, query_RD: Tensor, logits_RM: Tensor) -> Chunk:
        problem = self.problem
        keys = self._keys(rows)
        column_part = slice(keys.start - columns.start, keys.stop - columns.start)
        labels = label_view(logits_RM, problem, rows, columns.start)
        positive_logit = labels.clone()
        is_owned = self._owned(rows)
        row_out = column_out = row_limit = column_limit = None
        if not self.compares_late:
            row_out, column_out = self._beyond_limits(rows, columns, logits_RM, is_owned, keys)
        elif problem.row_limit is not None:
            row_limit = problem.row_limit[rows]
            if self.is_two_sided and problem.column_limit is not None:
                column_limit = problem.column_limit[keys]
        is_equal = self._equal_ids(rows, columns, logits_RM)
        positives_RM = None
        if problem.multi_positive and is_equal is not None:
            positives_RM = is_equal
            if row_out is not None:
                row_out.logical_and_(~positives_RM)
            if column_out is not None:
                column_out.logical_and_(~positives_RM[:, column_part])
        self._add_hardness(logits_RM, is_owned, positives_RM)
        self._apply_owners(logits_RM, is_owned, columns)
        if positives_RM is not None:
            positives_RM.logical_and_(logits_RM != -torch.inf)
        elif is_equal is not None:
            logits_RM.masked_fill_(is_equal, -torch.inf)
        elif self.equal_pairs is not None:
            logits_RM[self.equal_pairs.within(rows, columns)] = -torch.inf
        labels.fill_(-torch.inf)
        if not self.is_two_sided and row_out is not None:
            logits_RM.masked_fill_(row_out, -torch.inf)
            row_out = None
        return Chunk(
            rows, columns, query_RD, logits_RM, labels, positive_logit, positives_RM, row_out,
            column_out, row_limit, column_limit, column_part, keys, self.keeps_all,
        )  # fmt: skip

    def _owned(self, rows: slice) -> Tensor | None:
        """(R, M - num_keys) the rows' own hard negatives."""
        owner = self.problem.negative_owner
        if owner is None:
            return None
        return torch.arange(rows.start, rows.stop, device=owner.device)[:, None] == owner[None, :]

    def _beyond_limits(
        self, rows: slice, columns: slice, logits_RM: Tensor, is_owned: Tensor | None, keys: slice
    ) -> tuple[Tensor | None, Tensor | None]:
        """What the limits leave out of the rows' terms, and of those of the columns `keys`."""
        problem = self.problem
        column_part = slice(keys.start - columns.start, keys.stop - columns.start)
        row_out = column_out = None
        if problem.row_limit is not None:
            row_out = logits_RM > problem.row_limit[rows, None]
            if is_owned is not None and not problem.exclude_owned:
                row_out[:, problem.num_keys - columns.start :].logical_and_(~is_owned)
        if self.is_two_sided and problem.column_limit is not None:
            column_out = logits_RM[:, column_part] > problem.column_limit[None, keys]
        if problem.query_guide is not None and problem.candidate_guide is not None:
            guide_RM = problem.query_guide[rows] @ problem.candidate_guide[columns].T
            assert problem.row_guide_limit is not None
            row_out = _either(row_out, guide_RM > problem.row_guide_limit[rows, None])
            if self.is_two_sided:
                assert problem.column_guide_limit is not None
                beyond_RK = guide_RM[:, column_part] > problem.column_guide_limit[None, keys]
                column_out = _either(column_out, beyond_RK)
        return row_out, column_out

    def _equal_ids(self, rows: slice, columns: slice, logits_RM: Tensor) -> Tensor | None:
        """(R, M) equal ids, if not listed, but labels; a candidate without an id has no equal."""
        query_ids, candidate_ids = self.problem.query_ids, self.problem.candidate_ids
        if query_ids is None or candidate_ids is None or self.equal_pairs is not None:
            return None
        is_equal = query_ids[rows, None] == candidate_ids[None, columns]
        missing = logits_RM.shape[1] - is_equal.shape[1]
        if missing:
            is_equal = F.pad(is_equal, (0, missing))
        label_view(is_equal, self.problem, rows, columns.start).fill_(False)
        return is_equal

    def _add_hardness(
        self, logits_RM: Tensor, is_owned: Tensor | None, positives_RM: Tensor | None
    ) -> None:
        """Adds hardness * similarity to the logits of the negatives it is meant for."""
        problem = self.problem
        if not problem.hardness:
            return
        factor = 1 + problem.hardness / problem.scale
        raised_RM = torch.full_like(logits_RM, float(problem.hardness_on != "owned"))
        if is_owned is not None and problem.hardness_on != "all":
            raised_RM[:, problem.num_keys :] = is_owned ^ (problem.hardness_on == "in_batch")
        if positives_RM is not None:
            raised_RM.masked_fill_(positives_RM, 0)
        logits_RM.mul_(raised_RM.mul_(factor - 1).add_(1))

    def _apply_owners(self, logits_RM: Tensor, is_owned: Tensor | None, columns: slice) -> None:
        problem = self.problem
        if is_owned is None:
            return
        negatives = logits_RM[:, problem.num_keys - columns.start :]
        if problem.exclude_owned:
            negatives.masked_fill_(is_owned, -torch.inf)
            return
        if problem.hard_negative_weight:
            negatives.add_(is_owned, alpha=problem.hard_negative_weight)
        if not problem.share_negatives:
            negatives.masked_fill_(is_owned.logical_not_(), -torch.inf)


def _needs_limits_only_in_sums(problem: ContrastiveProblem) -> bool:
    """Whether nothing but sums of exponentials, and their gradients, must know of the limits."""
    return (
        problem.bound is not None
        and not (problem.multi_positive or problem.with_logit_sums or problem.hardness)
        and (problem.negative_owner is None or problem.exclude_owned)
        and problem.query_guide is None
    )


def _either(left: Tensor | None, right: Tensor) -> Tensor:
    return right if left is None else left.logical_or_(right)
