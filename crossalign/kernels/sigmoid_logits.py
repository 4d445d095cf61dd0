"""The part of a tile that the kernels of the pairwise sigmoid loss share.

    x2[i, j] = log2(e) * (-y z[i, j]),   z[i, j] = scale * <q_i, k_j> * rq_i * rk_j + bias

softplus(x) and sigmoid(x) are formed from 2^-|x2| only, which is in (0, 1]: nothing overflows, and
a term of 1e-10 keeps its digits, which 1 + 1e-10 would round off.

Shapes: N queries, M keys, D features.
"""

from __future__ import annotations

import triton
import triton.language as tl

from crossalign.kernels.contrastive_logits import (
    LN_2,
    equal_ids,
    holds_labels,
    label_mask,
    scaled_tile,
    similarity_tile,
)


@triton.jit
def unbiased_logits(
    query,  # (N, D) descriptor, or pointer
    candidates,  # (M, D) descriptor, or pointer
    rules,  # TileRules
    strides,  # of query and candidates
    first_row, first_column,
    num_queries, num_candidates, num_features,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
    flags: tl.constexpr,  # TileFlags
):  # fmt: skip
    """[BLOCK_N, BLOCK_M] z - bias in log2 units."""
    similarity = similarity_tile(
        query, candidates, strides[0], strides[1], num_queries, num_candidates, first_row,
        first_column, num_features, BLOCK_N, BLOCK_M, BLOCK_D, flags,
    )  # fmt: skip
    return scaled_tile(
        similarity, rules.scale_ptr, rules.query_inverse_norm_ptr,
        rules.candidate_inverse_norm_ptr, first_row + tl.arange(0, BLOCK_N),
        first_column + tl.arange(0, BLOCK_M), num_queries, num_candidates, flags.NORMALIZE,
    )  # fmt: skip


@triton.jit
def negate_positives(
    tile,  # [BLOCK_N, BLOCK_M]
    rules,
    first_row, first_column,
    num_queries, num_candidates, label_offset,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, HAS_IDS: tl.constexpr,
):  # fmt: skip
    """The tile times -y. With ids a query's own key has its id, so that ids tell all positives."""
    offs_n = first_row + tl.arange(0, BLOCK_N)
    offs_m = first_column + tl.arange(0, BLOCK_M)
    if HAS_IDS:
        is_positive = equal_ids(
            rules.query_ids_ptr, rules.candidate_ids_ptr, offs_n, offs_m, num_queries,
            num_candidates,
        )  # fmt: skip
        tile = tl.where(is_positive, -tile, tile)
    elif holds_labels(first_row, first_column, label_offset, BLOCK_N, BLOCK_M):
        is_label = label_mask(offs_n, offs_m, label_offset, num_candidates)
        tile = tl.where(is_label, -tile, tile)
    return tile


@triton.jit
def softplus(x2):
    """log(1 + 2^x2) of logits in log2 units.

    log1p(e) = 2 artanh(e / (2 + e)) as a series in its square, at most 1/9: the logarithm of a GPU
    is exact to 2^-22 near 1, which is nothing of a small e.
    """
    # 9^-7 / 15 is below the rounding of float32, 9^-16 / 33 below that of float64.
    TERMS: tl.constexpr = 16 if x2.dtype == tl.float64 else 7
    exponential = tl.exp2(-tl.abs(x2))
    ratio = exponential / (2.0 + exponential)
    square = ratio * ratio
    series = square * (1.0 / (2 * TERMS - 1)) + 1.0 / (2 * TERMS - 3)
    for term in tl.static_range(TERMS - 2):
        series = series * square + 1.0 / (2 * (TERMS - 3 - term) + 1)
    return tl.maximum(x2, 0.0) * LN_2 + 2.0 * ratio * series


@triton.jit
def sigmoid(x2):
    """1 / (1 + 2^-x2) of logits in log2 units."""
    exponential = tl.exp2(-tl.abs(x2))
    return tl.where(x2 >= 0, 1.0, exponential) / (1.0 + exponential)
