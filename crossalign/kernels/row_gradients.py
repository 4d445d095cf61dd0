"""Gradients of the embeddings from the sums of the products; one program per row of either side.

    g = scale / divisor * sum + scale * grad_positive_logit * unit vector of the positive partner,
        times the upstream gradient, if it is not in those numbers
    grad_x = (g - u <u, g>) * inverse_norm,   u = x * inverse_norm

The positive's gradient, the largest number of its row, is added here in float32: in the gradient
matrix it would be rounded to the operands' dtype, an error twenty times that of all other entries
together. Below the floor of the norm that is a constant, and nothing is projected away. One launch
for both sides: for small batches launch overhead dominates.

Reads each row of the sums, of x and of the partner once (normalized: twice, the second time from
cache), accumulates in float32 (float64 for float64), writes each element once.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from crossalign.contrastive.problem import ContrastiveProblem
from crossalign.kernels.operands import TileOperands
from crossalign.kernels.row_norms import row_launch_shape
from crossalign.precision import NORM_FLOOR

_FLOOR = tl.constexpr(NORM_FLOOR)


@triton.jit
def _row_gradient(
    sum_ptr,  # (D,) accumulator dtype
    x_ptr,  # (D,)
    partner_ptr,  # (D,) the other half of the positive pair
    out_ptr,  # (D,) out
    inverse_norm_ptr,  # of x's side, or None
    partner_inverse_norm_ptr,  # of the other side, or None
    divisor_ptr,  # of x's side, or None
    grad_positive_logit_ptr,  # ()
    scale_ptr,  # ()
    upstream_ptr,  # () or None: 1
    row,  # of x on its side
    partner,  # of its partner on the other
    has_partner,
    num_features,
    BLOCK_D: tl.constexpr,
):
    ACC_DTYPE: tl.constexpr = sum_ptr.dtype.element_ty
    factor = tl.load(scale_ptr)
    if upstream_ptr is not None:
        factor *= tl.load(upstream_ptr)
    of_partner = factor * tl.load(grad_positive_logit_ptr, mask=has_partner, other=0.0)
    if partner_inverse_norm_ptr is not None:
        of_partner *= tl.load(partner_inverse_norm_ptr + partner, mask=has_partner, other=0.0)
    if divisor_ptr is not None:
        factor /= tl.load(divisor_ptr + row)
    inverse_norm = 1.0
    along = 0.0
    if inverse_norm_ptr is not None:
        inverse_norm = tl.load(inverse_norm_ptr + row)
        products = tl.zeros((BLOCK_D,), ACC_DTYPE)
        for first_feature in range(0, num_features, BLOCK_D):
            offs_d = first_feature + tl.arange(0, BLOCK_D)
            in_range_d = offs_d < num_features
            x = tl.load(x_ptr + offs_d, mask=in_range_d, other=0.0).to(ACC_DTYPE)
            grad = factor * tl.load(sum_ptr + offs_d, mask=in_range_d, other=0.0)
            other = tl.load(partner_ptr + offs_d, mask=in_range_d & has_partner, other=0.0)
            products += x * (grad + of_partner * other.to(ACC_DTYPE))
        along = tl.sum(products, 0) * inverse_norm * inverse_norm
        along = tl.where(inverse_norm >= 1.0 / _FLOOR, 0.0, along)
    for first_feature in range(0, num_features, BLOCK_D):
        offs_d = first_feature + tl.arange(0, BLOCK_D)
        in_range_d = offs_d < num_features
        grad = factor * tl.load(sum_ptr + offs_d, mask=in_range_d, other=0.0)
        other = tl.load(partner_ptr + offs_d, mask=in_range_d & has_partner, other=0.0)
        grad += of_partner * other.to(ACC_DTYPE)
        if inverse_norm_ptr is not None:
            x = tl.load(x_ptr + offs_d, mask=in_range_d, other=0.0).to(ACC_DTYPE)
            grad = (grad - along * x) * inverse_norm
        tl.store(out_ptr + offs_d, grad.to(out_ptr.dtype.element_ty), mask=in_range_d)


@triton.jit(
    do_not_specialize=[
        "num_rows", "first_row", "first_candidate", "num_queries", "num_keys", "label_offset",
    ]
)  # fmt: skip
def _row_gradients_kernel(
    query_sum_ptr,  # (n, D) accumulator dtype
    candidate_sum_ptr,  # (m, D)
    query_ptr,  # (N, D)
    candidates_ptr,  # (M, D)
    query_inverse_norm_ptr,  # (N,) or None
    candidate_inverse_norm_ptr,  # (M,) or None
    query_divisor_ptr,  # (N,) or None
    candidate_divisor_ptr,  # (M,) or None
    grad_positive_logit_ptr,  # (N,)
    scale_ptr,  # ()
    upstream_ptr,  # () or None
    grad_query_ptr,  # (N, D) out
    grad_candidates_ptr,  # (m, D) out
    stride_sn, stride_qn, stride_cm,
    num_rows, first_row, first_candidate, num_queries, num_keys, label_offset, num_features,
    BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Programs below num_rows take the queries from first_row on, the others candidates."""
    line = tl.program_id(0).to(tl.int64)
    if line < num_rows:
        row = first_row + line
        partner = row + label_offset
        has_partner = (partner >= 0) & (partner < num_keys)
        _row_gradient(
            query_sum_ptr + line * stride_sn,
            query_ptr + row * stride_qn,
            candidates_ptr + partner * stride_cm,
            grad_query_ptr + row * num_features,
            query_inverse_norm_ptr,
            candidate_inverse_norm_ptr,
            query_divisor_ptr,
            grad_positive_logit_ptr + row,
            scale_ptr, upstream_ptr, row, partner, has_partner, num_features, BLOCK_D,
        )  # fmt: skip
    else:
        line -= num_rows
        row = first_candidate + line
        partner = row - label_offset
        has_partner = (partner >= 0) & (partner < num_queries) & (row < num_keys)
        _row_gradient(
            candidate_sum_ptr + line * stride_sn,
            candidates_ptr + row * stride_cm,
            query_ptr + partner * stride_qn,
            grad_candidates_ptr + line * num_features,
            candidate_inverse_norm_ptr,
            query_inverse_norm_ptr,
            candidate_divisor_ptr,
            grad_positive_logit_ptr + partner,
            scale_ptr, upstream_ptr, row, partner, has_partner, num_features, BLOCK_D,
        )  # fmt: skip


def row_gradients(
    operands: TileOperands,
    divisors: tuple[Tensor | None, Tensor | None],
    grad_positive_logit: Tensor,
    sums: tuple[Tensor, Tensor],
    outs: tuple[Tensor, Tensor],
    rows: slice,
    candidates: slice,
    upstream: Tensor | None = None,
) -> None:
    """Fills outs: grad_query (N, D) at rows, grad_candidates (m, D) if candidates is not empty.

    sums: (rows, D or more) and (m, D or more), one stride; divisors: (N,) and (M,), of the sums;
    upstream: () what the gradients are multiplied by.
    """
    problem: ContrastiveProblem = operands.problem
    query, normalize = operands.query, operands.problem.normalize
    num_rows, num_candidates = rows.stop - rows.start, candidates.stop - candidates.start
    block_d, num_warps = row_launch_shape(outs[0].shape[1])
    if num_rows + num_candidates:
        _row_gradients_kernel[(num_rows + num_candidates,)](
            query_sum_ptr=sums[0],
            candidate_sum_ptr=sums[1],
            query_ptr=query,
            candidates_ptr=operands.candidates,
            query_inverse_norm_ptr=operands.query_inverse_norm if normalize else None,
            candidate_inverse_norm_ptr=operands.candidate_inverse_norm if normalize else None,
            query_divisor_ptr=divisors[0],
            candidate_divisor_ptr=divisors[1],
            grad_positive_logit_ptr=grad_positive_logit,
            scale_ptr=problem.scale,
            upstream_ptr=upstream,
            grad_query_ptr=outs[0],
            grad_candidates_ptr=outs[1],
            stride_sn=sums[0].stride(0),
            stride_qn=query.stride(0),
            stride_cm=operands.candidates.stride(0),
            num_rows=num_rows,
            first_row=rows.start,
            first_candidate=candidates.start,
            num_queries=query.shape[0],
            num_keys=problem.num_keys,
            label_offset=problem.label_offset,
            num_features=outs[0].shape[1],
            BLOCK_D=block_d,
            num_warps=num_warps,
        )
