"""What the gradient of a tile of logits is formed from: one number per row or column and kind.

    rows (5, N): coefficient, rest, positive coefficient, share of the inverse norm, and what
        flows through the sum of logits
    candidates (5, M): likewise

Of bounded logits the coefficient is the upstream gradient times exp(-rest). One launch
replaces about fifteen; for small batches launch overhead dominates. Reads and writes O(N + M).
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from crossalign.contrastive.problem import ContrastiveGrads, ContrastiveProblem, ContrastiveSums
from crossalign.kernels.contrastive_logits import BATCH_SIZES, LOG2_E
from crossalign.kernels.launch import accumulator_dtype

BLOCK = 128  # numbers of one program


class GradientVectors(NamedTuple):
    """What the tile kernel reads, one number per line."""

    rows: Tensor  # (5, N)
    candidates: Tensor  # (5, M)


@triton.jit
def _coefficient(coefficient, rest, IS_BOUNDED: tl.constexpr):
    """(coefficient, rest in log2 units); of bounded logits the coefficient takes exp(-rest)."""
    # Without a rest every logit is -inf and its exponential 0; -inf - -inf would be NaN.
    rest = tl.where(rest == float("-inf"), float("inf"), rest)
    if IS_BOUNDED:
        coefficient *= tl.exp(-rest)
    return coefficient, rest * LOG2_E


@triton.jit
def _scaled_copy(out_ptr, ptr, factor, offs, is_given, is_written):
    """factor times the numbers that are given, 0 for the others."""
    values = factor * tl.load(ptr + offs, mask=is_given, other=0.0)
    tl.store(out_ptr + offs, values, mask=is_written)


@triton.jit(do_not_specialize=BATCH_SIZES)
def _coefficients_kernel(
    grad_row_negative_lse_ptr,  # (N,)
    grad_column_negative_lse_ptr,  # (K,)
    grad_row_positive_sum_ptr,  # (N,)
    grad_column_positive_sum_ptr,  # (K,)
    grad_row_logit_sum_ptr,  # (N,)
    grad_column_logit_sum_ptr,  # (K,)
    row_negative_lse_ptr,  # (N,)
    column_negative_lse_ptr,  # (K,)
    row_norm_share_ptr,  # (N,)
    column_norm_share_ptr,  # (M,)
    factor_ptr,  # ()
    rows_ptr,  # (5, N) out
    columns_ptr,  # (5, M) out
    num_queries, num_candidates, num_keys,
    SYMMETRIC: tl.constexpr, IS_BOUNDED: tl.constexpr, MULTI_POSITIVE: tl.constexpr,
    WITH_LOGIT_SUMS: tl.constexpr, NORMALIZE: tl.constexpr, HAS_FACTOR: tl.constexpr,
    BLOCK: tl.constexpr, ACC_DTYPE: tl.constexpr,
):  # fmt: skip
    """The vectors of BLOCK rows, and of the candidates of the same indices."""
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    is_row = offs < num_queries
    is_key = offs < num_keys
    is_column = offs < num_candidates
    factor = 1.0
    if HAS_FACTOR:
        factor = tl.load(factor_ptr)
    row_size = num_queries.to(tl.int64)
    column_size = num_candidates.to(tl.int64)
    grad = factor * tl.load(grad_row_negative_lse_ptr + offs, mask=is_row, other=0.0)
    rest = tl.load(row_negative_lse_ptr + offs, mask=is_row, other=0.0)
    coefficient, rest = _coefficient(grad, rest, IS_BOUNDED)
    tl.store(rows_ptr + offs, coefficient, mask=is_row)
    tl.store(rows_ptr + row_size + offs, rest, mask=is_row)
    # exp(z - inf) = 0 for the negatives, which have no column term; exp(z - 0) could overflow.
    coefficient = tl.zeros((BLOCK,), ACC_DTYPE)
    rest = tl.full((BLOCK,), float("inf"), ACC_DTYPE)
    if SYMMETRIC:
        grad = factor * tl.load(grad_column_negative_lse_ptr + offs, mask=is_key, other=0.0)
        rest = tl.load(column_negative_lse_ptr + offs, mask=is_key, other=float("inf"))
        coefficient, rest = _coefficient(grad, rest, IS_BOUNDED)
    tl.store(columns_ptr + offs, coefficient, mask=is_column)
    tl.store(columns_ptr + column_size + offs, rest, mask=is_column)
    if MULTI_POSITIVE:
        _scaled_copy(
            rows_ptr + 2 * row_size, grad_row_positive_sum_ptr, factor, offs, is_row, is_row
        )
        if SYMMETRIC:
            of_columns_ptr = columns_ptr + 2 * column_size
            _scaled_copy(
                of_columns_ptr, grad_column_positive_sum_ptr, factor, offs, is_key, is_column
            )
    if WITH_LOGIT_SUMS:
        _scaled_copy(rows_ptr + 4 * row_size, grad_row_logit_sum_ptr, factor, offs, is_row, is_row)
        if SYMMETRIC:
            of_columns_ptr = columns_ptr + 4 * column_size
            _scaled_copy(of_columns_ptr, grad_column_logit_sum_ptr, factor, offs, is_key, is_column)
    if NORMALIZE:
        norm_share = tl.load(row_norm_share_ptr + offs, mask=is_row, other=0.0)
        tl.store(rows_ptr + 3 * row_size + offs, norm_share, mask=is_row)
        norm_share = tl.load(column_norm_share_ptr + offs, mask=is_column, other=0.0)
        tl.store(columns_ptr + 3 * column_size + offs, norm_share, mask=is_column)


_READ = (
    *("row_negative_lse", "column_negative_lse", "row_positive_sum", "column_positive_sum"),
    *("row_logit_sum", "column_logit_sum"),
)


def coefficients(
    grads: ContrastiveGrads,
    sums: ContrastiveSums,
    problem: ContrastiveProblem,
    row_norm_share: Tensor | None,
    column_norm_share: Tensor | None,
    num_candidates: int,
    factor: Tensor | None,
) -> GradientVectors:
    """row_norm_share: (N,), column_norm_share: (M,), their part of the inverse norms; factor: ()
    multiplies every coefficient."""
    num_queries = grads.positive_logit.shape[0]
    rows = grads.positive_logit.new_empty(5, num_queries)
    candidates = grads.positive_logit.new_empty(5, num_candidates)
    _coefficients_kernel[(triton.cdiv(max(num_queries, num_candidates), BLOCK),)](
        **{f"grad_{name}_ptr": getattr(grads, name) for name in _READ},
        row_negative_lse_ptr=sums.row_negative_lse,
        column_negative_lse_ptr=sums.column_negative_lse,
        row_norm_share_ptr=row_norm_share,
        column_norm_share_ptr=column_norm_share,
        factor_ptr=factor,
        rows_ptr=rows,
        columns_ptr=candidates,
        num_queries=num_queries,
        num_candidates=num_candidates,
        num_keys=problem.num_keys,
        SYMMETRIC=problem.symmetric,
        IS_BOUNDED=problem.bound is not None,
        MULTI_POSITIVE=problem.multi_positive,
        WITH_LOGIT_SUMS=problem.with_logit_sums,
        NORMALIZE=row_norm_share is not None,
        HAS_FACTOR=factor is not None,
        BLOCK=BLOCK,
        ACC_DTYPE=accumulator_dtype(grads.positive_logit.dtype),
    )
    return GradientVectors(rows, candidates)
