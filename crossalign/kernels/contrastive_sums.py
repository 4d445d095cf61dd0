"""What one tile of logits adds to the partial sums of its rows and of its candidates.

A row's partial sum lives in registers while its program walks along the row; it starts anew with
the next row block, and is stored after every tile, the last store being the whole. A column's lives
in the program's own line of a workspace.
"""

from __future__ import annotations

import triton
import triton.language as tl

from crossalign.kernels.contrastive_logits import LN_2


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
    logits,  # [BLOCK_N, BLOCK_M]
    column_ptrs,  # [BLOCK_M]
    is_key,  # [BLOCK_M]
    is_begun,  # [BLOCK_M] keys whose line has been begun
    SYMMETRIC: tl.constexpr,
    IS_BOUNDED: tl.constexpr,
):
    """The row sums with this tile's exponentials; adds the candidates' to their line."""
    if IS_BOUNDED:
        exponentials = tl.exp2(logits)
        # Columns first: in the other order Triton 3.6 spills 77 registers on sm_90, not 7.
        if SYMMETRIC:
            add_to(column_ptrs, tl.sum(exponentials, 0), is_key, is_begun)
        row_sum += tl.sum(exponentials, 1)
    else:
        if SYMMETRIC:
            largest = tl.max(logits, 0)  # before the load, as in add_to
            column_sum = tl.load(column_ptrs, mask=is_begun, other=float("-inf"))
            tl.store(column_ptrs, log_add(column_sum, largest, logits, 0), mask=is_key)
        row_sum = log_add(row_sum, tl.max(logits, 1), logits, 1)
    return row_sum


@triton.jit
def add_positives(
    positive_sum,  # [BLOCK_N]
    positive_count,  # [BLOCK_N]
    logits,  # [BLOCK_N, BLOCK_M]
    is_positive,  # [BLOCK_N, BLOCK_M]
    column_sum_ptrs,  # [BLOCK_M]
    column_count_ptrs,  # [BLOCK_M]
    is_key,  # [BLOCK_M]
    is_begun,  # [BLOCK_M] keys whose lines have been begun
    SYMMETRIC: tl.constexpr,
):
    """The rows' sums and counts of further positives, in natural units; adds the candidates'."""
    counts = is_positive.to(logits.dtype)
    sums = tl.where(is_positive, logits * LN_2, 0.0)
    if SYMMETRIC:
        add_to(column_sum_ptrs, tl.sum(sums, 0), is_key, is_begun)
        add_to(column_count_ptrs, tl.sum(counts, 0), is_key, is_begun)
    return positive_sum + tl.sum(sums, 1), positive_count + tl.sum(counts, 1)


@triton.jit
def count(is_counted):
    """[BLOCK_N, BLOCK_M] -> [BLOCK_N]: how many of each row."""
    return tl.sum(is_counted.to(tl.int32), 1)
