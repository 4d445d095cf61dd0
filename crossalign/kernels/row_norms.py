"""Inverse norms of the rows of two matrices; one program per row.

    inverse_norm[i] = 1 / max(||x_i||, 1e-12), NaN where the norm overflows

Reads each row once, accumulates in float32 (float64 for float64).
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from crossalign.kernels.launch import accumulator_dtype, device_guard
from crossalign.precision import NORM_FLOOR, accumulator

_FLOOR = tl.constexpr(NORM_FLOOR)
LARGEST_BLOCK_D = 4096


@triton.jit(do_not_specialize=["num_queries"])
def _inverse_norm_kernel(
    query_ptr,  # (N, D)
    columns_ptr,  # (M, D)
    query_inverse_norm_ptr,  # (N,) out
    candidate_inverse_norm_ptr,  # (M,) out
    stride_qn,
    stride_cm,
    num_queries,
    num_features,
    BLOCK_D: tl.constexpr,
    ACC_DTYPE: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    if row < num_queries:
        x_ptr = query_ptr + row * stride_qn
        inverse_norm_ptr = query_inverse_norm_ptr + row
    else:
        x_ptr = columns_ptr + (row - num_queries) * stride_cm
        inverse_norm_ptr = candidate_inverse_norm_ptr + (row - num_queries)
    squares = tl.zeros((BLOCK_D,), ACC_DTYPE)
    for first_feature in range(0, num_features, BLOCK_D):
        offs_d = first_feature + tl.arange(0, BLOCK_D)
        x = tl.load(x_ptr + offs_d, mask=offs_d < num_features, other=0.0)
        x = x.to(ACC_DTYPE)  # [BLOCK_D]
        squares += x * x
    norm = tl.sqrt(tl.sum(squares, 0))
    # Written so that a NaN norm stays NaN, which a maximum would drop, and the inverse of the floor
    # is what the backward pass compares with: a GPU's division may be off by an ulp.
    is_short = norm < _FLOOR
    inverse_norm = tl.where(is_short, 1.0 / _FLOOR, 1.0 / tl.where(is_short, _FLOOR, norm))
    # Without it a row whose norm overflows would become zeros, and look healthy.
    inverse_norm = tl.where(norm == float("inf"), float("nan"), inverse_norm)
    tl.store(inverse_norm_ptr, inverse_norm)


def inverse_norms(query: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor]:
    """(N, D), (M, D), unit stride along D -> (N,), (M,) in the accumulator dtype."""
    num_queries, num_rows = query.shape[0], query.shape[0] + candidates.shape[0]
    dtype = accumulator(query.dtype)
    results = (query.new_empty(x.shape[0], dtype=dtype) for x in (query, candidates))
    query_inverse_norm, candidate_inverse_norm = results
    if num_rows:
        block_d, num_warps = row_launch_shape(query.shape[1])
        with device_guard(query):
            _inverse_norm_kernel[(num_rows,)](
                query,
                candidates,
                query_inverse_norm,
                candidate_inverse_norm,
                stride_qn=query.stride(0),
                stride_cm=candidates.stride(0),
                num_queries=num_queries,
                num_features=query.shape[1],
                BLOCK_D=block_d,
                ACC_DTYPE=accumulator_dtype(query.dtype),
                num_warps=num_warps,
            )
    return query_inverse_norm, candidate_inverse_norm


def row_launch_shape(num_features: int) -> tuple[int, int]:
    """(BLOCK_D, num_warps): one block for a whole row where it fits."""
    block_d = min(triton.next_power_of_2(num_features), LARGEST_BLOCK_D)
    return block_d, min(8, max(1, block_d // 256))
