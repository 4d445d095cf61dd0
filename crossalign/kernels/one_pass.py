"""One direction in one pass over the logits: the sums, and the products that gradients consist of.

    kept[i, j] = e^z[i, j] / ||k_j||, of a few rows at a time
    a_i = w_i / (exp(row_negative_lse[i]) + exp(positive_logit[i]))
    query_sum[i] = sum_j kept[i, j] k_j             grad_query^ = scale * a_i * query_sum
    candidate_sum[j] = sum_i kept[i, j] (a_i q^_i)  grad_candidates^ = scale * ||k_j|| candidate_sum

A chunk holds whole rows, so their softmax is known as soon as its logits are: where no column term
waits for rows to come, and the upstream gradient is one number, the products follow at once. Three
products instead of four, no second kernel over the logits; what flows through the positives is
added in float32 by row_gradients, which the backward pass consists of.

6 N M D operations; per chunk 2 bytes per logit written and twice read in bfloat16, in a workspace
of at most CHUNK_BYTES. For bounded logits without further positives, see kept_exponentials.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from crossalign.contrastive.problem import ContrastiveProblem, ContrastiveSums, GradientNeeds
from crossalign.kernels.contrastive_forward import forward_sums
from crossalign.kernels.gradient_products import accumulate
from crossalign.kernels.kept_exponentials import ROW_GRANULE, empty_kept
from crossalign.kernels.launch import INTERPRETED, device_guard
from crossalign.kernels.operands import TileOperands
from crossalign.kernels.row_gradients import row_gradients
from crossalign.kernels.row_norms import row_launch_shape

# The interpreter's is small, so that small test shapes have several chunks.
CHUNK_BYTES = 2**13 if INTERPRETED else 2**29


class OnePass(NamedTuple):
    """What the backward pass needs; gradients are for an upstream of 1."""

    query_sum: Tensor  # (N, D), or without rows where nobody needs it
    candidate_sum: Tensor  # (m, D) of the wanted candidates
    query_divisor: Tensor  # (N,) 1 / a_i
    grad_positive_logit: Tensor  # (N,)
    query_inverse_norm: Tensor  # (N,)
    candidate_inverse_norm: Tensor  # (M,)


@triton.jit(do_not_specialize=["num_terms"])
def _scaled_queries_kernel(
    query_ptr,  # (R, D)
    inverse_norm_ptr,  # (R,)
    positive_logit_ptr,  # (R,)
    row_negative_lse_ptr,  # (R,)
    weight_ptr,  # (R,), or None: 1
    scaled_ptr,  # (R, D) out: a_i q^_i
    divisor_ptr,  # (R,) out
    grad_positive_logit_ptr,  # (R,) out
    stride_qn, stride_sn, num_features, num_terms,
    BLOCK_D: tl.constexpr,
):  # fmt: skip
    """One row per program: its term's gradients, and the row as the second product reads it."""
    row = tl.program_id(0).to(tl.int64)
    positive_logit = tl.load(positive_logit_ptr + row)
    weight = (tl.zeros_like(positive_logit) + 1.0) / num_terms
    if weight_ptr is not None:
        weight *= tl.load(weight_ptr + row)
    rest = tl.load(row_negative_lse_ptr + row)
    coefficient = weight / (tl.exp(rest) + tl.exp(positive_logit))
    tl.store(divisor_ptr + row, 1.0 / coefficient)
    by_positive_logit = -weight / (1.0 + tl.exp(positive_logit - rest))
    tl.store(grad_positive_logit_ptr + row, by_positive_logit)
    coefficient *= tl.load(inverse_norm_ptr + row)
    for first_feature in range(0, num_features, BLOCK_D):
        offs_d = first_feature + tl.arange(0, BLOCK_D)
        in_range_d = offs_d < num_features
        x = tl.load(query_ptr + row * stride_qn + offs_d, mask=in_range_d, other=0.0)
        x = coefficient * x.to(coefficient.dtype)
        tl.store(
            scaled_ptr + row * stride_sn + offs_d,
            x.to(scaled_ptr.dtype.element_ty),
            mask=in_range_d,
        )


def one_pass_fwd(
    query: Tensor,
    candidates: Tensor,
    problem: ContrastiveProblem,
    weights: Tensor | None,
    num_terms: int,
    with_stats: bool,
    needs: GradientNeeds,
) -> tuple[ContrastiveSums, Tensor, OnePass]:
    """The sums, the terms of the pairs (N,), and what the backward pass needs.

    query: (N, D), candidates: (M, D); weights: (N,), None: 1; d loss / d term is
    weight / num_terms.
    """
    operands = TileOperands.make(query, candidates, problem)
    num_queries, num_candidates = query.shape[0], candidates.shape[0]
    wanted, width = needs.wanted(num_candidates), operands.query.shape[1]
    row_bytes = num_candidates * query.element_size()
    chunk_rows = max(1, CHUNK_BYTES // row_bytes // ROW_GRANULE) * ROW_GRANULE
    chunk_rows = min(chunk_rows, num_queries)

    def empty(*shape: int) -> Tensor:
        return problem.scale.new_empty(shape)

    result = OnePass(
        query_sum=empty(num_queries if needs.query else 0, width),
        candidate_sum=empty(wanted.stop - wanted.start, width),
        query_divisor=empty(num_queries),
        grad_positive_logit=empty(num_queries),
        query_inverse_norm=operands.query_inverse_norm,
        candidate_inverse_norm=operands.candidate_inverse_norm,
    )
    kept = empty_kept(chunk_rows, num_candidates, query)
    scaled, terms = query.new_empty(chunk_rows, width), empty(num_queries)
    parts = []
    with device_guard(query):
        for first in range(0, num_queries, chunk_rows):
            rows = slice(first, min(first + chunk_rows, num_queries))
            part = operands.of_rows(rows)
            parts.append(forward_sums(part, None, with_stats, kept, terms[rows]))
            _scale_queries(part, parts[-1], weights, num_terms, scaled, result, rows)
            num_rows = rows.stop - rows.start
            if needs.query:
                tile = kept[:num_rows, :num_candidates]
                accumulate(result.query_sum[rows], tile, operands.candidates, is_first=True)
            if wanted.start < wanted.stop:
                tile = kept[:num_rows, wanted].T
                accumulate(result.candidate_sum, tile, scaled[:num_rows], is_first=first == 0)
    return _joined_sums(parts), terms, result


def _scale_queries(
    part: TileOperands,
    sums: ContrastiveSums,
    weights: Tensor | None,
    num_terms: int,
    scaled: Tensor,
    result: OnePass,
    rows: slice,
) -> None:
    block_d, num_warps = row_launch_shape(scaled.shape[1])
    _scaled_queries_kernel[(part.query.shape[0],)](
        query_ptr=part.query,
        inverse_norm_ptr=part.query_inverse_norm,
        positive_logit_ptr=sums.positive_logit,
        row_negative_lse_ptr=sums.row_negative_lse,
        weight_ptr=None if weights is None else weights[rows],
        num_terms=num_terms,
        scaled_ptr=scaled,
        divisor_ptr=result.query_divisor[rows],
        grad_positive_logit_ptr=result.grad_positive_logit[rows],
        stride_qn=part.query.stride(0),
        stride_sn=scaled.stride(0),
        num_features=scaled.shape[1],
        BLOCK_D=block_d,
        num_warps=num_warps,
    )


def _joined_sums(parts: list[ContrastiveSums]) -> ContrastiveSums:
    """Of all rows; there are no sums of columns, and the candidates' norms are the same in each."""
    if len(parts) == 1:
        return parts[0]
    fields = ("positive_logit", "row_negative_lse", "num_above", "num_tied")
    joined = {name: torch.cat([getattr(part, name) for part in parts]) for name in fields}
    return parts[0]._replace(**joined)


def one_pass_bwd(
    upstream: Tensor,
    query: Tensor,
    candidates: Tensor,
    problem: ContrastiveProblem,
    result: OnePass,
    needs: GradientNeeds,
) -> tuple[Tensor, Tensor]:
    """Gradients of (query (N, D), wanted candidates (m, D)); upstream: ()."""
    norms = (result.query_inverse_norm, result.candidate_inverse_norm)
    operands = TileOperands.make(query, candidates, problem, norms)
    grad_query = query.new_empty(len(result.query_sum), query.shape[1])
    grad_candidates = query.new_empty(len(result.candidate_sum), query.shape[1])
    with device_guard(query):
        row_gradients(
            operands,
            (result.query_divisor, result.candidate_inverse_norm),
            result.grad_positive_logit,
            (result.query_sum, result.candidate_sum),
            (grad_query, grad_candidates),
            slice(0, len(result.query_sum)),
            needs.wanted(candidates.shape[0]),
            upstream,
        )
    return grad_query, grad_candidates
