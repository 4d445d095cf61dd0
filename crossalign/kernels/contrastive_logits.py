"""One tile of logits: the part that the forward and the backward kernels share.

    z2[i, j] = log2(e) * (scale * <q_i, k_j> * rq_i * rk_j + b[i, j])

Logits live in units of log2, so that exp is the hardware's exp2. Raw operands are multiplied and
the inverse norms rq, rk scale the accumulator: normalizing costs no copy and no rounding.

Shapes: N queries, M candidates (the first K are keys), D features. Operands come through tensor
descriptors: 64-bit addresses, zeros outside the tensor, TMA on Hopper and later.
"""

from __future__ import annotations

import triton
import triton.language as tl

from crossalign.kernels.launch import dot_operand

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)
# Sizes that follow the batch: never specialized, so another batch size never compiles again.
BATCH_SIZES = (
    "num_queries",
    "num_candidates",
    "num_keys",
    "num_ids",
    "label_offset",
    "num_groups",
    "blocks_per_group",
    "blocks_per_split",
    "num_tiles_m",
    "num_tiles",
)


@triton.jit
def similarity_tile(
    query,  # (N, D) descriptor, or pointer
    candidates,  # (M, D) descriptor, or pointer
    stride_qn,
    stride_cm,
    num_queries,
    num_candidates,
    first_row,
    first_column,
    num_features,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    flags: tl.constexpr,  # TileFlags; whole, since Triton 3.6 takes no string as an argument
):
    """<q_i, k_j> of one tile, raw operands, accumulated over D in ACC_DTYPE; zero outside."""
    similarity = tl.zeros((BLOCK_N, BLOCK_M), flags.ACC_DTYPE)  # [BLOCK_N, BLOCK_M]
    offs_n = first_row + tl.arange(0, BLOCK_N)
    offs_m = first_column + tl.arange(0, BLOCK_M)
    for first_feature in range(0, num_features, BLOCK_D):
        if flags.USE_DESCRIPTORS:
            query_tile = query.load([first_row, first_feature])  # [BLOCK_N, BLOCK_D]
            candidate_tile = candidates.load([first_column, first_feature])  # [BLOCK_M, BLOCK_D]
        else:
            offs_d = first_feature + tl.arange(0, BLOCK_D)
            query_tile = rows_tile(query, stride_qn, offs_n, offs_d, num_queries, num_features)
            candidate_tile = rows_tile(
                candidates, stride_cm, offs_m, offs_d, num_candidates, num_features
            )
        similarity = tl.dot(
            dot_operand(query_tile),
            dot_operand(candidate_tile).T,
            similarity,
            input_precision=flags.PRECISION,
            out_dtype=flags.ACC_DTYPE,
        )
    return similarity


@triton.jit
def rows_tile(ptr, stride, offs_rows, offs_d, num_rows, num_features):
    """[rows, BLOCK_D] of a matrix with unit stride along D; zero outside it."""
    in_range_rows = (offs_rows >= 0) & (offs_rows < num_rows)
    mask = in_range_rows[:, None] & (offs_d < num_features)[None, :]
    ptrs = ptr + offs_rows.to(tl.int64)[:, None] * stride + offs_d[None, :]
    return tl.load(ptrs, mask=mask, other=0.0)


@triton.jit
def scaled_tile(
    similarity,  # [BLOCK_N, BLOCK_M]
    scale_ptr,  # ()
    query_inverse_norm_ptr,  # (N,)
    candidate_inverse_norm_ptr,  # (M,)
    offs_n,
    offs_m,
    num_queries,
    num_candidates,
    NORMALIZE: tl.constexpr,
):
    """Similarities to logits in log2 units: scaled, and normalized if asked.

    An infinite logit becomes NaN: from here on -inf is what is left out.
    """
    scale = tl.load(scale_ptr) * LOG2_E
    if NORMALIZE:
        in_range_n = (offs_n >= 0) & (offs_n < num_queries)
        in_range_m = (offs_m >= 0) & (offs_m < num_candidates)
        row_factor = scale * tl.load(query_inverse_norm_ptr + offs_n, mask=in_range_n, other=0.0)
        column_factor = tl.load(candidate_inverse_norm_ptr + offs_m, mask=in_range_m, other=0.0)
        logits = similarity * row_factor[:, None] * column_factor[None, :]
    else:
        logits = similarity * scale
        logits = tl.where(tl.abs(logits) == float("inf"), float("nan"), logits)
    return logits


@triton.jit
def owned_mask(negative_owner_ptr, offs_n, offs_m, num_keys, num_candidates):
    """[BLOCK_N, BLOCK_M] where a column is a hard negative of the row's own."""
    is_negative = (offs_m >= num_keys) & (offs_m < num_candidates)
    owner = tl.load(negative_owner_ptr + (offs_m - num_keys), mask=is_negative, other=-1)
    return offs_n[:, None] == owner[None, :]


@triton.jit
def apply_owners(
    logits,  # [BLOCK_N, BLOCK_M] log2 units
    is_owned,  # [BLOCK_N, BLOCK_M]
    offs_m,
    num_keys,
    num_candidates,
    hard_negative_weight,
    flags: tl.constexpr,
):
    """Adds the weight of a query's own hard negatives; excludes those it does not own, or does."""
    if flags.EXCLUDE_OWNED:
        return tl.where(is_owned, float("-inf"), logits)
    else:
        logits = tl.where(is_owned, logits + hard_negative_weight * LOG2_E, logits)
        if not flags.SHARE_NEGATIVES:
            is_negative = (offs_m >= num_keys) & (offs_m < num_candidates)
            logits = tl.where(is_negative[None, :] & ~is_owned, float("-inf"), logits)
        return logits


@triton.jit
def add_hardness(
    logits,  # [BLOCK_N, BLOCK_M] log2 units
    rules,
    offs_n, offs_m,
    num_queries, num_candidates, num_keys, num_ids,
    hardness,
    flags: tl.constexpr,
):  # fmt: skip
    """Adds hardness * similarity to the negatives it is meant for, further positives apart."""
    raised = logits * (1.0 + hardness / tl.load(rules.scale_ptr))
    if flags.HARDNESS_ON != "all":
        is_owned = (offs_n < 0)[:, None] & (offs_m < 0)[None, :]
        if flags.HAS_OWNERS:
            is_owned = owned_mask(
                rules.negative_owner_ptr, offs_n, offs_m, num_keys, num_candidates
            )
        if flags.HARDNESS_ON == "owned":
            raised = tl.where(is_owned, raised, logits)
        else:
            raised = tl.where(is_owned, logits, raised)
    if flags.MULTI_POSITIVE:
        is_equal = equal_ids(
            rules.query_ids_ptr, rules.candidate_ids_ptr, offs_n, offs_m, num_queries, num_ids
        )
        raised = tl.where(is_equal, logits, raised)
    return raised


@triton.jit
def ruled_logits(
    query,  # (N, D) descriptor, or pointer
    candidates,  # (M, D) descriptor, or pointer
    rules,  # TileRules
    strides,  # of query and candidates
    weights,  # hard_negative_weight, hardness
    first_row, first_column,
    num_queries, num_candidates, num_keys, num_ids, num_features, label_offset,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
    flags: tl.constexpr,
):  # fmt: skip
    """Two tiles [BLOCK_N, BLOCK_M] in log2 units: the scaled similarities; and with weights, -inf
    at labels, at what owners exclude and outside of the tensors."""
    similarity = similarity_tile(
        query, candidates, strides[0], strides[1], num_queries, num_candidates, first_row,
        first_column, num_features, BLOCK_N, BLOCK_M, BLOCK_D, flags,
    )  # fmt: skip
    offs_n = first_row + tl.arange(0, BLOCK_N)
    offs_m = first_column + tl.arange(0, BLOCK_M)
    plain = scaled_tile(
        similarity, rules.scale_ptr, rules.query_inverse_norm_ptr,
        rules.candidate_inverse_norm_ptr, offs_n, offs_m, num_queries, num_candidates,
        flags.NORMALIZE,
    )  # fmt: skip
    logits = plain
    if flags.HARDNESS_ON != "none":
        logits = add_hardness(
            logits, rules, offs_n, offs_m, num_queries, num_candidates, num_keys, num_ids,
            weights[1], flags,
        )  # fmt: skip
    if flags.HAS_OWNERS and first_column + BLOCK_M > num_keys:
        is_owned = owned_mask(rules.negative_owner_ptr, offs_n, offs_m, num_keys, num_candidates)
        logits = apply_owners(logits, is_owned, offs_m, num_keys, num_candidates, weights[0], flags)
    at_edge = (first_row + BLOCK_N > num_queries) | (first_column + BLOCK_M > num_candidates)
    if at_edge | holds_labels(first_row, first_column, label_offset, BLOCK_N, BLOCK_M):
        inside = (offs_n < num_queries)[:, None] & (offs_m < num_candidates)[None, :]
        is_label = label_mask(offs_n, offs_m, label_offset, num_keys)
        logits = tl.where(inside & ~is_label, logits, float("-inf"))
    return plain, logits


@triton.jit
def holds_labels(
    first_row, first_column, label_offset, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr
):
    """Whether a tile contains positives; most tiles do not."""
    first_label = first_row + label_offset
    return (first_label < first_column + BLOCK_M) & (first_label + BLOCK_N > first_column)


@triton.jit
def label_mask(offs_n, offs_m, label_offset, num_keys):
    """[BLOCK_N, BLOCK_M] where a column is the row's own key."""
    return ((offs_n + label_offset)[:, None] == offs_m[None, :]) & (offs_m < num_keys)[None, :]


@triton.jit
def equal_ids(query_ids_ptr, candidate_ids_ptr, offs_n, offs_m, num_queries, num_ids):
    """[BLOCK_N, BLOCK_M] where a row's 64-bit id equals a column's; candidates past num_ids have
    none.

    Having an id is a predicate of its own: no sentinel value could be told from a user's id.
    """
    query_ids = tl.load(query_ids_ptr + offs_n, mask=offs_n < num_queries, other=0)
    has_id = offs_m < num_ids
    candidate_ids = tl.load(candidate_ids_ptr + offs_m, mask=has_id, other=0)
    return (query_ids[:, None] == candidate_ids[None, :]) & has_id[None, :]
