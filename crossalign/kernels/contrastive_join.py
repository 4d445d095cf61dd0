"""The forward kernel's partial sums joined: one line per split or group, added in order.

    row_negative_lse[i] = log sum over splits        column_negative_lse[j] = log sum over groups

and the sums and counts of positives and of logits, and the counts for the statistics; of pairs
whose key is here also their terms, see pair_terms. One launch replaces about ten; for small
batches launch overhead dominates. Reads O(splits N + groups K) numbers.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from crossalign.contrastive.problem import ContrastiveSums
from crossalign.kernels.contrastive_logits import BATCH_SIZES, LN_2
from crossalign.kernels.pair_terms import further_positives, softplus

BLOCK = 128  # numbers of one program
LINES = 16  # partial sums in flight


class Partials(NamedTuple):
    """What the programs of the forward kernel leave: lines of sums, one per split or group."""

    row_partial: Tensor  # (splits, N) sums of exp2, or their log2
    column_partial: Tensor  # (groups, K) if symmetric, likewise
    row_positive: Tensor  # (2, splits, N) if multi_positive: sums of logits, counts
    column_positive: Tensor  # (2, groups, K) if that and symmetric
    row_logits: Tensor  # (2, splits, N) if with_logit_sums: sums of all logits, counts
    column_logits: Tensor  # (2, groups, K) if that and symmetric
    row_best: Tensor  # (splits, N) if asked for: the largest logit of a positive, log2 units
    row_counts: Tensor  # (2, splits, N) int32 with statistics: above the positive, at least tied


@triton.jit
def _load_lines(ptr, first, offs, mask, size, num_lines, other, LINES: tl.constexpr):
    """[LINES, BLOCK]: numbers offs of the lines from first on; `other` past the last."""
    lines = first + tl.arange(0, LINES)
    ptrs = ptr + lines.to(tl.int64)[:, None] * size + offs[None, :]
    return tl.load(ptrs, mask=(lines < num_lines)[:, None] & mask[None, :], other=other)


@triton.jit
def _sum_lines(ptr, offs, mask, size, num_lines, BLOCK: tl.constexpr, LINES: tl.constexpr):
    """[BLOCK]: the sum of num_lines lines of `size` numbers at offs, in their order."""
    total = tl.zeros((BLOCK,), ptr.dtype.element_ty)
    for first in range(0, num_lines, LINES):
        total += tl.sum(_load_lines(ptr, first, offs, mask, size, num_lines, 0, LINES), 0)
    return total


@triton.jit
def _log_sum_lines(
    ptr, offs, mask, size, num_lines, IS_BOUNDED: tl.constexpr, BLOCK: tl.constexpr,
    LINES: tl.constexpr,
):  # fmt: skip
    """[BLOCK]: the natural log-sum-exp of what the lines hold."""
    if IS_BOUNDED:
        return tl.log(_sum_lines(ptr, offs, mask, size, num_lines, BLOCK, LINES))
    else:
        largest = tl.full((BLOCK,), float("-inf"), ptr.dtype.element_ty)
        for first in range(0, num_lines, LINES):
            part = _load_lines(ptr, first, offs, mask, size, num_lines, float("-inf"), LINES)
            largest = tl.maximum(largest, tl.max(part, 0))
        shift = tl.where(largest == float("-inf"), 0.0, largest)
        total = tl.zeros((BLOCK,), ptr.dtype.element_ty)
        for first in range(0, num_lines, LINES):
            part = _load_lines(ptr, first, offs, mask, size, num_lines, float("-inf"), LINES)
            total += tl.sum(tl.exp2(part - shift[None, :]), 0)
        return tl.log(total) + shift * LN_2


@triton.jit
def _join_pair(
    ptr, sum_ptr, count_ptr, offs, mask, size, num_lines, BLOCK: tl.constexpr, LINES: tl.constexpr
):  # fmt: skip
    """[BLOCK], [BLOCK], stored: sums, and the counts that follow num_lines lines of them."""
    total = _sum_lines(ptr, offs, mask, size, num_lines, BLOCK, LINES)
    tl.store(sum_ptr + offs, total, mask=mask)
    ptr += num_lines.to(tl.int64) * size
    count = _sum_lines(ptr, offs, mask, size, num_lines, BLOCK, LINES)
    tl.store(count_ptr + offs, count, mask=mask)
    return total, count


@triton.jit(do_not_specialize=[*BATCH_SIZES, "num_splits"])
def _join_kernel(
    partials,  # Partials
    sums,  # ContrastiveSums, out; the positive logits are read
    terms_ptr,  # (N,) out, of pairs of a query and the key of its index; or None
    num_queries, num_keys, num_splits, num_groups,
    SYMMETRIC: tl.constexpr, IS_BOUNDED: tl.constexpr, MULTI_POSITIVE: tl.constexpr,
    WITH_LOGIT_SUMS: tl.constexpr, WITH_STATS: tl.constexpr,
    BLOCK: tl.constexpr, LINES: tl.constexpr,
):  # fmt: skip
    """The sums of BLOCK rows, and of the candidates of the same indices."""
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    is_row = offs < num_queries
    is_key = offs < num_keys
    rest = _log_sum_lines(
        partials.row_partial, offs, is_row, num_queries, num_splits, IS_BOUNDED, BLOCK, LINES
    )
    tl.store(sums.row_negative_lse + offs, rest, mask=is_row)
    positive_logit = rest  # unread without terms
    if terms_ptr is not None:
        positive_logit = tl.load(sums.positive_logit + offs, mask=is_row, other=0.0)
    term = softplus(rest - positive_logit)
    if SYMMETRIC:
        rest = _log_sum_lines(
            partials.column_partial, offs, is_key, num_keys, num_groups, IS_BOUNDED, BLOCK, LINES
        )
        tl.store(sums.column_negative_lse + offs, rest, mask=is_key)
        term += softplus(rest - positive_logit)
    if MULTI_POSITIVE:
        total, count = _join_pair(
            partials.row_positive, sums.row_positive_sum, sums.row_positive_count, offs, is_row,
            num_queries, num_splits, BLOCK, LINES,
        )  # fmt: skip
        term -= further_positives(positive_logit, total, count)
        if SYMMETRIC:
            total, count = _join_pair(
                partials.column_positive, sums.column_positive_sum, sums.column_positive_count,
                offs, is_key, num_keys, num_groups, BLOCK, LINES,
            )  # fmt: skip
            term -= further_positives(positive_logit, total, count)
    if terms_ptr is not None:
        if SYMMETRIC:
            term *= 0.5
        # 0 * positive is NaN for an infinite positive logit; without it the softplus would be 0.
        tl.store(terms_ptr + offs, term + 0 * positive_logit, mask=is_row)
    if WITH_LOGIT_SUMS:
        _join_pair(
            partials.row_logits, sums.row_logit_sum, sums.row_logit_count, offs, is_row,
            num_queries, num_splits, BLOCK, LINES,
        )  # fmt: skip
        if SYMMETRIC:
            _join_pair(
                partials.column_logits, sums.column_logit_sum, sums.column_logit_count, offs,
                is_key, num_keys, num_groups, BLOCK, LINES,
            )  # fmt: skip
    if WITH_STATS:
        ptr, size = partials.row_counts, num_queries
        above = _sum_lines(ptr, offs, is_row, size, num_splits, BLOCK, LINES)
        ptr += num_splits.to(tl.int64) * size
        at_least = _sum_lines(ptr, offs, is_row, size, num_splits, BLOCK, LINES)
        tl.store(sums.num_above + offs, above, mask=is_row)
        tl.store(sums.num_tied + offs, at_least - above, mask=is_row)


def join(
    partials: Partials, sums: ContrastiveSums, is_bounded: bool, terms: Tensor | None = None
) -> None:
    """Fills what sums has of rests, positives, logits and counts, and the terms (N,) of the pairs,
    whose keys are the first candidates."""
    num_queries, num_keys = sums.row_negative_lse.shape[0], sums.column_negative_lse.shape[0]
    _join_kernel[(triton.cdiv(max(num_queries, num_keys), BLOCK),)](
        partials=partials,
        sums=sums,
        terms_ptr=terms,
        num_queries=num_queries,
        num_keys=num_keys,
        num_splits=partials.row_partial.shape[0],
        num_groups=partials.column_partial.shape[0],
        SYMMETRIC=num_keys > 0,
        IS_BOUNDED=is_bounded,
        MULTI_POSITIVE=sums.row_positive_sum.shape[0] > 0,
        WITH_LOGIT_SUMS=sums.row_logit_sum.shape[0] > 0,
        WITH_STATS=sums.num_above.shape[0] > 0,
        BLOCK=BLOCK,
        LINES=LINES,
    )
