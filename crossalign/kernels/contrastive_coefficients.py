"""What the gradient of a tile of logits is formed from: one number per row or column and kind.

    rows (5, N): coefficient, rest, positive coefficient, share of the inverse norm, and what
        flows through the sum of logits
    candidates (5, M): likewise

Of bounded logits the coefficient is the upstream gradient times exp(-rest). The upstream gradients
of the sums are given; or they are formed here, of a loss that is a sum of pair_terms. One launch
replaces about fifteen; for small batches launch overhead dominates. Reads and writes O(N + M).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from crossalign.contrastive.problem import ContrastiveGrads, ContrastiveProblem, ContrastiveSums
from crossalign.kernels.contrastive_logits import BATCH_SIZES, LOG2_E
from crossalign.kernels.launch import accumulator_dtype
from crossalign.kernels.pair_terms import term_gradient

BLOCK = 128  # numbers of one program


class PairGradient(NamedTuple):
    """Of a loss that is the sum over i of weight_i * l_i, see pair_terms, or that / num_terms."""

    upstream: Any = None  # () its gradient
    weights: Any = None  # (N,), or None: 1


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


@triton.jit
def _term_upstream(pairs, sums, num_terms, offs, is_row, SYMMETRIC: tl.constexpr):
    """[BLOCK] each: d loss / d term of one direction, and the positive logits."""
    positive_logit = tl.load(sums.positive_logit + offs, mask=is_row, other=0.0)
    upstream = (tl.zeros_like(positive_logit) + tl.load(pairs.upstream)) / num_terms
    if pairs.weights is not None:
        upstream *= tl.load(pairs.weights + offs, mask=is_row, other=0.0)
    if SYMMETRIC:
        upstream *= 0.5
    return tl.where(is_row, upstream, 0.0), positive_logit


@triton.jit(do_not_specialize=[*BATCH_SIZES, "num_terms"])
def _coefficients_kernel(
    grads,  # ContrastiveGrads, read unless there are pairs
    sums,  # ContrastiveSums
    pairs,  # PairGradient, or its fields None
    grad_positive_logit_ptr,  # (N,) out, if there are pairs
    row_norm_share_ptr,  # (N,)
    column_norm_share_ptr,  # (M,)
    factor_ptr,  # ()
    rows_ptr,  # (5, N) out
    columns_ptr,  # (5, M) out
    num_queries, num_candidates, num_keys, num_terms,
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
    rest = tl.load(sums.row_negative_lse + offs, mask=is_row, other=0.0)
    of_term, positive_logit, by_positive_logit, by_sum = rest, rest, rest, rest  # unread if given
    if pairs.upstream is not None:
        of_term, positive_logit = _term_upstream(pairs, sums, num_terms, offs, is_row, SYMMETRIC)
        by_positive_logit, grad, by_sum = term_gradient(
            of_term, positive_logit, rest, sums.row_positive_count, offs, is_row, MULTI_POSITIVE
        )
    else:
        grad = tl.load(grads.row_negative_lse + offs, mask=is_row, other=0.0)
    coefficient, rest = _coefficient(factor * grad, rest, IS_BOUNDED)
    tl.store(rows_ptr + offs, coefficient, mask=is_row)
    tl.store(rows_ptr + row_size + offs, rest, mask=is_row)
    # exp(z - inf) = 0 for the negatives, which have no column term; exp(z - 0) could overflow.
    coefficient = tl.zeros((BLOCK,), ACC_DTYPE)
    rest = tl.full((BLOCK,), float("inf"), ACC_DTYPE)
    by_column_sum = by_sum
    if SYMMETRIC:
        rest = tl.load(sums.column_negative_lse + offs, mask=is_key, other=float("inf"))
        if pairs.upstream is not None:
            by_own, grad, by_column_sum = term_gradient(
                of_term, positive_logit, rest, sums.column_positive_count, offs, is_key,
                MULTI_POSITIVE,
            )  # fmt: skip
            by_positive_logit += by_own
        else:
            grad = tl.load(grads.column_negative_lse + offs, mask=is_key, other=0.0)
        coefficient, rest = _coefficient(factor * grad, rest, IS_BOUNDED)
    tl.store(columns_ptr + offs, coefficient, mask=is_column)
    tl.store(columns_ptr + column_size + offs, rest, mask=is_column)
    if pairs.upstream is not None:
        tl.store(grad_positive_logit_ptr + offs, by_positive_logit, mask=is_row)
    if MULTI_POSITIVE:
        if pairs.upstream is None:
            by_sum = tl.load(grads.row_positive_sum + offs, mask=is_row, other=0.0)
        tl.store(rows_ptr + 2 * row_size + offs, factor * by_sum, mask=is_row)
        if SYMMETRIC:
            if pairs.upstream is None:
                by_column_sum = tl.load(grads.column_positive_sum + offs, mask=is_key, other=0.0)
            by_column_sum = tl.where(is_key, factor * by_column_sum, 0.0)
            tl.store(columns_ptr + 2 * column_size + offs, by_column_sum, mask=is_column)
    if WITH_LOGIT_SUMS:
        _scaled_copy(rows_ptr + 4 * row_size, grads.row_logit_sum, factor, offs, is_row, is_row)
        if SYMMETRIC:
            of_columns_ptr = columns_ptr + 4 * column_size
            _scaled_copy(of_columns_ptr, grads.column_logit_sum, factor, offs, is_key, is_column)
    if NORMALIZE:
        norm_share = tl.load(row_norm_share_ptr + offs, mask=is_row, other=0.0)
        tl.store(rows_ptr + 3 * row_size + offs, norm_share, mask=is_row)
        norm_share = tl.load(column_norm_share_ptr + offs, mask=is_column, other=0.0)
        tl.store(columns_ptr + 3 * column_size + offs, norm_share, mask=is_column)


def coefficients(
    grads: ContrastiveGrads,
    sums: ContrastiveSums,
    problem: ContrastiveProblem,
    row_norm_share: Tensor | None,
    column_norm_share: Tensor | None,
    num_candidates: int,
    factor: Tensor | None,
    pairs: PairGradient | None = None,
    num_terms: int = 1,
) -> GradientVectors:
    """grads: of the sums; with pairs, only that of the positive logits, which is written.

    row_norm_share: (N,), column_norm_share: (M,), their part of the inverse norms; factor: ()
    multiplies every coefficient.
    """
    num_queries = grads.positive_logit.shape[0]
    rows = grads.positive_logit.new_empty(5, num_queries)
    candidates = grads.positive_logit.new_empty(5, num_candidates)
    _coefficients_kernel[(triton.cdiv(max(num_queries, num_candidates), BLOCK),)](
        grads=grads,
        sums=sums,
        pairs=pairs or PairGradient(),
        grad_positive_logit_ptr=grads.positive_logit,
        row_norm_share_ptr=row_norm_share,
        column_norm_share_ptr=column_norm_share,
        factor_ptr=factor,
        rows_ptr=rows,
        columns_ptr=candidates,
        num_queries=num_queries,
        num_candidates=num_candidates,
        num_keys=problem.num_keys,
        num_terms=num_terms,
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
