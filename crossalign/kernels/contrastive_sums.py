"""Which logits of a tile count, and what they add to the partial sums of its rows and candidates.

Equal ids make a logit a further positive, or leave it out. A limit leaves out what is more similar
than it, or what a guide finds more similar: of a row's term, and, of what serves both terms, of the
column's. Without limits the tiles of the rows and of the columns are one.

A row's partial sum lives in registers while its program walks along the row; it starts again with
the next row block, and is stored after every tile, the last store being the whole. A column's lives
in the program's own line of a workspace.
"""

from __future__ import annotations

import triton
import triton.language as tl

from crossalign.kernels.contrastive_logits import LN_2, LOG2_E, equal_ids, owned_mask
from crossalign.kernels.guides import guide_tile


@triton.jit
def _within_limits(
    plain,  # [BLOCK_N, BLOCK_M] scaled similarities
    logits,  # [BLOCK_N, BLOCK_M]
    is_equal,  # [BLOCK_N, BLOCK_M], if flags.MULTI_POSITIVE
    rules,
    offs_n, offs_m,
    num_queries, num_candidates, num_keys,
    flags: tl.constexpr,
):  # fmt: skip
    """The logits that count in the terms of the rows, and in those of the columns."""
    in_range_n = offs_n < num_queries
    is_key = offs_m < num_keys
    of_rows, of_columns = logits, logits
    if rules.row_limit_ptr is not None:
        limit = tl.load(rules.row_limit_ptr + offs_n, mask=in_range_n, other=0.0) * LOG2_E
        is_beyond = plain > limit[:, None]
        if flags.HAS_OWNERS and not flags.EXCLUDE_OWNED:
            is_beyond = is_beyond & ~owned_mask(
                rules.negative_owner_ptr, offs_n, offs_m, num_keys, num_candidates
            )
        of_rows = _without(logits, is_beyond, is_equal, flags)
        if flags.SYMMETRIC:
            limit = tl.load(rules.column_limit_ptr + offs_m, mask=is_key, other=0.0) * LOG2_E
            of_columns = _without(logits, plain > limit[None, :], is_equal, flags)
    if rules.query_guide_ptr is not None:
        guide = guide_tile(
            rules, offs_n, offs_m, num_queries, num_candidates, logits.shape[0], logits.shape[1],
            flags.ACC_DTYPE,
        )  # fmt: skip
        limit = tl.load(rules.row_guide_limit_ptr + offs_n, mask=in_range_n, other=0.0)
        of_rows = _without(of_rows, guide > limit[:, None], is_equal, flags)
        if flags.SYMMETRIC:
            limit = tl.load(rules.column_guide_limit_ptr + offs_m, mask=is_key, other=0.0)
            of_columns = _without(of_columns, guide > limit[None, :], is_equal, flags)
    return of_rows, of_columns


@triton.jit
def _without(logits, is_beyond, is_equal, flags: tl.constexpr):
    """The logits, -inf where they are beyond a limit; further positives stay."""
    if flags.MULTI_POSITIVE:
        is_beyond = is_beyond & ~is_equal
    return tl.where(is_beyond, float("-inf"), logits)


@triton.jit
def counted_logits(
    plain,  # [BLOCK_N, BLOCK_M] scaled similarities
    logits,  # [BLOCK_N, BLOCK_M] both as ruled_logits gives them
    rules,
    offs_n, offs_m,
    num_queries, num_candidates, num_keys, num_ids,
    flags: tl.constexpr,
):  # fmt: skip
    """Tiles [BLOCK_N, BLOCK_M]: logits of the rows, -inf where left out; of the columns likewise;
    which are further positives."""
    is_positive = logits == float("inf")  # unread without ids
    if flags.HAS_IDS:
        is_positive = equal_ids(
            rules.query_ids_ptr, rules.candidate_ids_ptr, offs_n, offs_m, num_queries, num_ids
        )
        if flags.MULTI_POSITIVE:
            is_positive = is_positive & (logits > float("-inf"))
        else:
            logits = tl.where(is_positive, float("-inf"), logits)
    of_rows = logits
    of_columns = logits
    if flags.HAS_LIMITS:
        of_rows, of_columns = _within_limits(
            plain, logits, is_positive, rules, offs_n, offs_m, num_queries, num_candidates,
            num_keys, flags,
        )  # fmt: skip
    return of_rows, of_columns, is_positive


@triton.jit
def add_to(ptrs, values, mask, is_begun):
    """Adds to this program's own line of column sums, or begins it where is_begun is false.

    Other threads of the program wrote the line's last values; the barriers inside the reduction
    that forms `values` stand between their stores and this load.
    """
    before = tl.load(ptrs, mask=is_begun, other=0)
    tl.store(ptrs, before + values, mask=mask)


@triton.jit
def log_add(before, largest, logits, AXIS: tl.constexpr):
    """log2(2^before + sum along AXIS of 2^logits): the online log-sum-exp, one number per line.

    largest: of the logits along AXIS.
    """
    largest = tl.maximum(before, largest)
    # Where everything is excluded the largest is -inf, and -inf - -inf would be NaN.
    largest = tl.where(largest == float("-inf"), 0.0, largest)
    total = tl.sum(tl.exp2(logits - tl.expand_dims(largest, AXIS)), AXIS)
    total += tl.exp2(before - largest)
    is_empty = total == 0
    return tl.where(is_empty, float("-inf"), largest + tl.log2(tl.where(is_empty, 1.0, total)))


@triton.jit
def add_exponentials(
    row_sum,  # [BLOCK_N]
    of_rows,  # [BLOCK_N, BLOCK_M] logits
    of_columns,  # [BLOCK_N, BLOCK_M] the same, but for what limits leave out
    column_ptrs,  # [BLOCK_M]
    is_key,  # [BLOCK_M]
    is_begun,  # [BLOCK_M] keys whose line has been begun
    flags: tl.constexpr,
):
    """The row sums with this tile's exponentials; adds the candidates' to their line."""
    if flags.IS_BOUNDED:
        exponentials = tl.exp2(of_columns)
        # Columns first: in the other order Triton 3.6 spills 77 registers on sm_90, not 7.
        if flags.SYMMETRIC:
            add_to(column_ptrs, tl.sum(exponentials, 0), is_key, is_begun)
        if flags.HAS_LIMITS:
            exponentials = tl.exp2(of_rows)
        row_sum += tl.sum(exponentials, 1)
    else:
        if flags.SYMMETRIC:
            largest = tl.max(of_columns, 0)  # before the load, as in add_to
            column_sum = tl.load(column_ptrs, mask=is_begun, other=float("-inf"))
            tl.store(column_ptrs, log_add(column_sum, largest, of_columns, 0), mask=is_key)
        row_sum = log_add(row_sum, tl.max(of_rows, 1), of_rows, 1)
    return row_sum


@triton.jit
def carry_logits(
    row_sum,  # [BLOCK_N]
    row_count,  # [BLOCK_N]
    of_rows,  # [BLOCK_N, BLOCK_M] logits
    is_of_rows,  # [BLOCK_N, BLOCK_M] which of them count
    of_columns,  # [BLOCK_N, BLOCK_M] likewise in the sums of the columns
    is_of_columns,  # [BLOCK_N, BLOCK_M]
    row_ptrs,  # [BLOCK_N]: sums, and counts row_lines further
    column_ptrs,  # [BLOCK_M]: sums, and counts column_lines further
    row_lines, column_lines,
    in_range_n,  # [BLOCK_N]
    is_key,  # [BLOCK_M]
    is_begun,  # [BLOCK_M] keys whose lines have been begun
    is_first,
    SYMMETRIC: tl.constexpr,
):  # fmt: skip
    """The rows' sums and counts of logits, in natural units, stored; adds the candidates' to their
    lines."""
    row_sum = tl.where(is_first, 0.0, row_sum)
    row_count = tl.where(is_first, 0.0, row_count)
    counts = is_of_rows.to(of_rows.dtype)
    sums = tl.where(is_of_rows, of_rows * LN_2, 0.0)
    if SYMMETRIC:
        column_counts = is_of_columns.to(of_columns.dtype)
        column_sums = tl.where(is_of_columns, of_columns * LN_2, 0.0)
        add_to(column_ptrs, tl.sum(column_sums, 0), is_key, is_begun)
        add_to(column_ptrs + column_lines, tl.sum(column_counts, 0), is_key, is_begun)
    row_sum += tl.sum(sums, 1)
    row_count += tl.sum(counts, 1)
    tl.store(row_ptrs, row_sum, mask=in_range_n)
    tl.store(row_ptrs + row_lines, row_count, mask=in_range_n)
    return row_sum, row_count


@triton.jit
def carry_counts(
    num_above,  # [BLOCK_N]
    num_at_least,  # [BLOCK_N]
    logits,  # [BLOCK_N, BLOCK_M]
    is_positive,  # [BLOCK_N, BLOCK_M]
    bounds,  # (N,) and (N,), see the kernel
    offs_n,
    in_range_n,
    row_ptrs,  # [BLOCK_N]: above, and at least tied row_lines further
    row_lines,
    is_first,
    MULTI_POSITIVE: tl.constexpr,
):
    """How many logits of each row are above its positive, and at least tied with it; stored."""
    compared = tl.where(is_positive, float("-inf"), logits) if MULTI_POSITIVE else logits
    upper = tl.load(bounds[1] + offs_n, mask=in_range_n, other=0.0)
    lower = tl.load(bounds[0] + offs_n, mask=in_range_n, other=0.0)
    num_above = tl.where(is_first, 0, num_above) + count(compared > upper[:, None])
    num_at_least = tl.where(is_first, 0, num_at_least) + count(compared >= lower[:, None])
    tl.store(row_ptrs, num_above, mask=in_range_n)
    tl.store(row_ptrs + row_lines, num_at_least, mask=in_range_n)
    return num_above, num_at_least


@triton.jit
def carry_best(best, logits, is_positive, row_ptrs, in_range_n, is_first):
    """[BLOCK_N] the largest logit of a positive, stored; -inf of a row without one."""
    of_positives = tl.where(is_positive, logits, float("-inf"))
    best = tl.maximum(tl.where(is_first, float("-inf"), best), tl.max(of_positives, 1))
    tl.store(row_ptrs, best, mask=in_range_n)
    return best


@triton.jit
def count(is_counted):
    """[BLOCK_N, BLOCK_M] -> [BLOCK_N]: how many of each row."""
    return tl.sum(is_counted.to(tl.int32), 1)
