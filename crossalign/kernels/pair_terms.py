"""From the sums of a pass to the loss of every pair, and back: one launch each way.

    term(rest) = softplus(rest - own) - (positive_sum - count own) / (1 + count)
    l = term(row_negative_lse), or (term(row_negative_lse) + term(column_negative_lse)) / 2

contrastive_terms.pair_terms has the same in PyTorch: some ten launches forward and fifteen
backward, which with a thousand pairs take longer than the products. Where the loss is a mean or a
sum and all rows are here, contrastive_join and contrastive_coefficients form terms and gradients
beside what they do anyway, without a launch. Reads and writes O(N) numbers.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from crossalign.contrastive.problem import ContrastiveGrads, ContrastiveSums
from crossalign.kernels.launch import device_guard

BLOCK = 128  # pairs of one program


@triton.jit
def softplus(x):
    """log(1 + e^x), to its last digits where e^x is small."""
    small = tl.exp(-tl.abs(x))
    above_one = 1.0 + small
    # Kahan: what rounding 1 + e^-|x| takes off the logarithm's argument it takes off the divisor.
    is_lost = above_one == 1.0
    quotient = tl.log(above_one) / tl.where(is_lost, 1.0, above_one - 1.0)
    # Written so that a NaN stays NaN, which a maximum would drop.
    return tl.where(x <= 0, 0.0, x) + small * tl.where(is_lost, 1.0, quotient)


@triton.jit
def further_positives(positive_logit, positive_sum, count):
    """What further positives take off a term."""
    return (positive_sum - count * positive_logit) / (1 + count)


@triton.jit
def _term(
    positive_logit,
    rest,
    positive_sum_ptr,
    positive_count_ptr,
    offs,
    in_range,
    MULTI_POSITIVE: tl.constexpr,
):
    term = softplus(rest - positive_logit)
    if MULTI_POSITIVE:
        positive_sum = tl.load(positive_sum_ptr + offs, mask=in_range, other=0.0)
        count = tl.load(positive_count_ptr + offs, mask=in_range, other=0.0)
        term -= further_positives(positive_logit, positive_sum, count)
    return term


@triton.jit(do_not_specialize=["num_pairs"])
def _pair_terms_fwd_kernel(
    positive_logit_ptr,  # (N,)
    row_negative_lse_ptr,  # (N,)
    row_positive_sum_ptr,  # (N,)
    row_positive_count_ptr,  # (N,)
    column_negative_lse_ptr,  # (N,)
    column_positive_sum_ptr,  # (N,)
    column_positive_count_ptr,  # (N,)
    terms_ptr,  # (N,) out
    num_pairs,
    SYMMETRIC: tl.constexpr, MULTI_POSITIVE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    in_range = offs < num_pairs
    positive_logit = tl.load(positive_logit_ptr + offs, mask=in_range, other=0.0)
    rest = tl.load(row_negative_lse_ptr + offs, mask=in_range, other=0.0)
    term = _term(
        positive_logit,
        rest,
        row_positive_sum_ptr,
        row_positive_count_ptr,
        offs,
        in_range,
        MULTI_POSITIVE,
    )
    if SYMMETRIC:
        rest = tl.load(column_negative_lse_ptr + offs, mask=in_range, other=0.0)
        column_term = _term(
            positive_logit, rest, column_positive_sum_ptr, column_positive_count_ptr, offs,
            in_range,
            MULTI_POSITIVE,
        )  # fmt: skip
        term = (term + column_term) / 2
    # 0 * own is NaN for an infinite positive logit; without it the softplus would be 0.
    tl.store(terms_ptr + offs, term + 0 * positive_logit, mask=in_range)


def pair_terms_fwd(sums: ContrastiveSums) -> Tensor:
    """(N,) the loss of every pair."""
    terms = sums.positive_logit.new_empty(sums.positive_logit.shape)
    if terms.shape[0]:
        with device_guard(terms):
            _pair_terms_fwd_kernel[(triton.cdiv(terms.shape[0], BLOCK),)](
                **{f"{name}_ptr": getattr(sums, name) for name in _READ},
                terms_ptr=terms,
                num_pairs=terms.shape[0],
                SYMMETRIC=sums.column_negative_lse.shape[0] > 0,
                MULTI_POSITIVE=sums.row_positive_sum.shape[0] > 0,
                BLOCK=BLOCK,
            )
    return terms


_READ = (
    *("positive_logit", "row_negative_lse", "row_positive_sum", "row_positive_count"),
    *("column_negative_lse", "column_positive_sum", "column_positive_count"),
)


@triton.jit
def term_gradient(
    grad,  # [BLOCK] or (): of the term
    positive_logit,
    rest,
    positive_count_ptr,
    offs,
    in_range,
    MULTI_POSITIVE: tl.constexpr,
):
    """[BLOCK] each: the gradients by positive_logit, rest and positive_sum."""
    x = rest - positive_logit
    small = tl.exp(-tl.abs(x))
    by_negative_lse = grad * (tl.where(x > 0, 1.0, small) / (1.0 + small))  # the sigmoid of x
    by_positive_logit = -by_negative_lse
    by_sum = by_negative_lse  # unread without further positives
    if MULTI_POSITIVE:
        count = tl.load(positive_count_ptr + offs, mask=in_range, other=0.0)
        by_sum = -grad / (1 + count)
        by_positive_logit -= count * by_sum
    return by_positive_logit, by_negative_lse, by_sum


@triton.jit
def _stored_term_gradient(
    grad, positive_logit, rest, positive_count_ptr, grad_rest_ptr, grad_positive_sum_ptr, offs,
    in_range,
    MULTI_POSITIVE: tl.constexpr,
):  # fmt: skip
    """Stores the gradients by rest and positive_sum; the gradient by positive_logit."""
    by_positive_logit, by_negative_lse, by_sum = term_gradient(
        grad, positive_logit, rest, positive_count_ptr, offs, in_range, MULTI_POSITIVE
    )
    tl.store(grad_rest_ptr + offs, by_negative_lse, mask=in_range)
    if MULTI_POSITIVE:
        tl.store(grad_positive_sum_ptr + offs, by_sum, mask=in_range)
    return by_positive_logit


@triton.jit(do_not_specialize=["num_pairs"])
def _pair_terms_bwd_kernel(
    grad_terms_ptr,  # (N,), of stride_g
    positive_logit_ptr,  # (N,)
    row_negative_lse_ptr,  # (N,)
    row_positive_count_ptr,  # (N,)
    column_negative_lse_ptr,  # (N,)
    column_positive_count_ptr,  # (N,)
    grad_positive_logit_ptr,  # (N,) out
    grad_row_negative_lse_ptr,  # (N,) out
    grad_row_positive_sum_ptr,  # (N,) out
    grad_column_negative_lse_ptr,  # (N,) out
    grad_column_positive_sum_ptr,  # (N,) out
    num_pairs, stride_g,
    SYMMETRIC: tl.constexpr, MULTI_POSITIVE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    in_range = offs < num_pairs
    grad = tl.load(grad_terms_ptr + offs.to(tl.int64) * stride_g, mask=in_range, other=0.0)
    positive_logit = tl.load(positive_logit_ptr + offs, mask=in_range, other=0.0)
    if SYMMETRIC:
        grad *= 0.5
    rest = tl.load(row_negative_lse_ptr + offs, mask=in_range, other=0.0)
    by_positive_logit = _stored_term_gradient(
        grad, positive_logit, rest, row_positive_count_ptr, grad_row_negative_lse_ptr,
        grad_row_positive_sum_ptr,
        offs, in_range, MULTI_POSITIVE,
    )  # fmt: skip
    if SYMMETRIC:
        rest = tl.load(column_negative_lse_ptr + offs, mask=in_range, other=0.0)
        by_positive_logit += _stored_term_gradient(
            grad, positive_logit, rest, column_positive_count_ptr, grad_column_negative_lse_ptr,
            grad_column_positive_sum_ptr, offs, in_range, MULTI_POSITIVE,
        )  # fmt: skip
    tl.store(grad_positive_logit_ptr + offs, by_positive_logit, mask=in_range)


def pair_terms_bwd(grad_terms: Tensor, sums: ContrastiveSums) -> ContrastiveGrads:
    """grad_terms: (N,), any stride."""
    grads = ContrastiveGrads(
        *(
            getattr(sums, name).new_empty(getattr(sums, name).shape)
            for name in ContrastiveGrads._fields
        )
    )
    if grad_terms.shape[0]:
        with device_guard(grad_terms):
            _pair_terms_bwd_kernel[(triton.cdiv(grad_terms.shape[0], BLOCK),)](
                grad_terms_ptr=grad_terms,
                **{f"{name}_ptr": getattr(sums, name) for name in _READ_AGAIN},
                **{f"grad_{name}_ptr": getattr(grads, name) for name in _WRITTEN},
                num_pairs=grad_terms.shape[0],
                stride_g=grad_terms.stride(0),
                SYMMETRIC=sums.column_negative_lse.shape[0] > 0,
                MULTI_POSITIVE=sums.row_positive_sum.shape[0] > 0,
                BLOCK=BLOCK,
            )
    return grads


_WRITTEN = (
    *("positive_logit", "row_negative_lse", "row_positive_sum"),
    *("column_negative_lse", "column_positive_sum"),
)
_READ_AGAIN = (
    "positive_logit", "row_negative_lse", "row_positive_count", "column_negative_lse",
    "column_positive_count",
)  # fmt: skip
