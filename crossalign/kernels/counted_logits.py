"""Which logits of a tile count: in the terms of its rows, in those of its columns, as positives.

Equal ids make a logit a further positive, or leave it out. A limit leaves out what is more similar
than it: of a row's term, and, of what serves both terms, of the column's. Without limits the two
tiles are one.
"""

from __future__ import annotations

import triton
import triton.language as tl

from crossalign.kernels.contrastive_logits import LOG2_E, equal_ids, owned_mask


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
    limit = tl.load(rules.row_limit_ptr + offs_n, mask=in_range_n, other=0.0) * LOG2_E
    is_beyond = plain > limit[:, None]
    if flags.HAS_OWNERS and not flags.EXCLUDE_OWNED:
        is_beyond = is_beyond & ~owned_mask(
            rules.negative_owner_ptr, offs_n, offs_m, num_keys, num_candidates
        )
    if flags.MULTI_POSITIVE:
        is_beyond = is_beyond & ~is_equal
    of_rows = tl.where(is_beyond, float("-inf"), logits)
    of_columns = logits
    if flags.SYMMETRIC:
        is_key = offs_m < num_keys
        limit = tl.load(rules.column_limit_ptr + offs_m, mask=is_key, other=0.0) * LOG2_E
        is_beyond = plain > limit[None, :]
        if flags.MULTI_POSITIVE:
            is_beyond = is_beyond & ~is_equal
        of_columns = tl.where(is_beyond, float("-inf"), logits)
    return of_rows, of_columns


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
