"""Row and column log-sum-exp of the contrastive logits from one pass, without the logits.

    row_negative_lse[i] = logsumexp_{j != own(i)} z[i, j]        column_negative_lse[j] =
    logsumexp_{i != own(j)}

Each program owns a group of row blocks and a split of the candidates and walks its tiles in a fixed
order: row sums stay in registers, column sums in the group's own line of a (groups, K) workspace.
Nothing is shared between programs, so there are no atomics and the same input gives the same bits.
Where a small enough bound of the logits is known no maximum is subtracted, and one exp2 per logit
serves both directions; otherwise both sums follow an online maximum. Exponentials of bounded logits
can be kept, in the operands' dtype and times the candidate's inverse norm, for the backward pass.

2 N M D operations; a tile reads (BLOCK_N + BLOCK_M) D elements, mostly from L2; writes O(N + M).
Accumulates in float32 (float64 for float64). Source: the online softmax of Milakov and
Gimelshein 2018; the one-pass symmetric form is our own.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from crossalign.contrastive.problem import ContrastiveProblem, ContrastiveSums, empty_sums
from crossalign.kernels.contrastive_join import Partials, join
from crossalign.kernels.contrastive_logits import (
    BATCH_SIZES,
    equal_ids,
    negative_logits,
)
from crossalign.kernels.contrastive_sums import add_exponentials, add_positives, count
from crossalign.kernels.kept_exponentials import keep_exponentials
from crossalign.kernels.launch import device_guard
from crossalign.kernels.operands import SHORT_NAMES, TRITON_DTYPES, TileOperands
from crossalign.kernels.positive_logits import positive_logits, tie_bounds
from crossalign.kernels.tiles import ProgramPlan, forward_tiles, plan_programs, program_slots


@triton.jit(do_not_specialize=BATCH_SIZES)
def _contrastive_fwd_kernel(
    query,  # (N, D) descriptor, or pointer
    candidates,  # (M, D) descriptor, or pointer
    scale_ptr,  # ()
    query_inverse_norm_ptr,  # (N,)
    candidate_inverse_norm_ptr,  # (M,)
    query_ids_ptr,  # (N,)
    candidate_ids_ptr,  # (num_ids,)
    negative_owner_ptr,  # (M - K,)
    tie_lower_ptr,  # (N,): a logit of at least this ties with the own one
    tie_upper_ptr,  # (N,): and one above this is above it; both in log2 units
    row_partial_ptr,  # (splits, N) out: sum of exp2, or its log2
    column_partial_ptr,  # (groups, K) out, likewise
    row_positive_ptr,  # (2, splits, N) out: sums of logits, counts
    column_positive_ptr,  # (2, groups, K) out
    row_counts_ptr,  # (2, splits, N) out: above the positive logit, at least tied with it
    kept,  # (N or more, M or more) out, descriptor, pointer or None: e^z / norm of the candidate
    stride_qn, stride_cm, stride_kn,
    num_queries, num_candidates, num_keys, num_ids, num_features, label_offset,
    num_groups, blocks_per_group, blocks_per_split,
    hard_negative_weight,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
    ACC_DTYPE: tl.constexpr, PRECISION: tl.constexpr,
    NORMALIZE: tl.constexpr, USE_DESCRIPTORS: tl.constexpr,
    SYMMETRIC: tl.constexpr, IS_BOUNDED: tl.constexpr, HAS_IDS: tl.constexpr,
    MULTI_POSITIVE: tl.constexpr, HAS_OWNERS: tl.constexpr, SHARE_NEGATIVES: tl.constexpr,
    WITH_STATS: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """Adds the tiles of this program's rectangle, row group times column split, to its sums."""
    group = tl.program_id(0) % num_groups
    split = tl.program_id(0) // num_groups
    row_lines = (tl.num_programs(0) // num_groups).to(tl.int64) * num_queries
    column_lines = num_groups.to(tl.int64) * num_keys
    no_sum = 0.0 if IS_BOUNDED else float("-inf")
    row_sum = tl.full((BLOCK_N,), no_sum, ACC_DTYPE)
    positive_sum = tl.zeros((BLOCK_N,), ACC_DTYPE)
    positive_count = tl.zeros((BLOCK_N,), ACC_DTYPE)
    num_above = tl.zeros((BLOCK_N,), tl.int32)
    num_at_least = tl.zeros((BLOCK_N,), tl.int32)
    # One flat loop: the next tile's loads overlap this one's exponentials.
    for tile in tl.range(0, blocks_per_group * blocks_per_split, flatten=True):
        first_row = (group * blocks_per_group + tile // blocks_per_split) * BLOCK_N
        first_column = (split * blocks_per_split + tile % blocks_per_split) * BLOCK_M
        logits = negative_logits(
            query, candidates, scale_ptr, query_inverse_norm_ptr, candidate_inverse_norm_ptr,
            negative_owner_ptr, first_row, first_column, stride_qn, stride_cm, num_queries,
            num_candidates, num_keys, num_features, label_offset, hard_negative_weight, BLOCK_N,
            BLOCK_M, BLOCK_D, ACC_DTYPE, PRECISION, NORMALIZE, USE_DESCRIPTORS, HAS_OWNERS,
            SHARE_NEGATIVES,
        )  # fmt: skip
        offs_n = first_row + tl.arange(0, BLOCK_N)
        offs_m = first_column + tl.arange(0, BLOCK_M)
        in_range_n = offs_n < num_queries
        is_key = offs_m < num_keys
        is_first = tile % blocks_per_split == 0
        is_begun = tl.where(tile >= blocks_per_split, is_key, False)
        row_offs = split.to(tl.int64) * num_queries + offs_n
        column_offs = group.to(tl.int64) * num_keys + offs_m
        if HAS_IDS:
            is_equal = equal_ids(
                query_ids_ptr, candidate_ids_ptr, offs_n, offs_m, num_queries, num_ids
            )
        if MULTI_POSITIVE:
            is_positive = is_equal & (logits > float("-inf"))
            column_ptrs = column_positive_ptr + column_offs
            positive_sum, positive_count = add_positives(
                tl.where(is_first, 0.0, positive_sum), tl.where(is_first, 0.0, positive_count),
                logits, is_positive, column_ptrs, column_ptrs + column_lines, is_key, is_begun,
                SYMMETRIC,
            )  # fmt: skip
            tl.store(row_positive_ptr + row_offs, positive_sum, mask=in_range_n)
            tl.store(row_positive_ptr + row_lines + row_offs, positive_count, mask=in_range_n)
        elif HAS_IDS:
            logits = tl.where(is_equal, float("-inf"), logits)
        if WITH_STATS:
            compared = tl.where(is_positive, float("-inf"), logits) if MULTI_POSITIVE else logits
            upper = tl.load(tie_upper_ptr + offs_n, mask=in_range_n, other=0.0)
            lower = tl.load(tie_lower_ptr + offs_n, mask=in_range_n, other=0.0)
            num_above = tl.where(is_first, 0, num_above) + count(compared > upper[:, None])
            num_at_least = tl.where(is_first, 0, num_at_least) + count(compared >= lower[:, None])
            tl.store(row_counts_ptr + row_offs, num_above, mask=in_range_n)
            tl.store(row_counts_ptr + row_lines + row_offs, num_at_least, mask=in_range_n)
        if kept is not None:
            keep_exponentials(
                kept, logits, candidate_inverse_norm_ptr, stride_kn, first_row, first_column,
                num_queries, num_candidates, USE_DESCRIPTORS, DTYPE,
            )  # fmt: skip
        row_sum = add_exponentials(
            tl.where(is_first, no_sum, row_sum), logits, column_partial_ptr + column_offs, is_key,
            is_begun, SYMMETRIC, IS_BOUNDED,
        )  # fmt: skip
        tl.store(row_partial_ptr + row_offs, row_sum, mask=in_range_n)


def contrastive_fwd(
    query: Tensor,
    candidates: Tensor,
    problem: ContrastiveProblem,
    known_positive_logit: Tensor | None,
    with_stats: bool,
    kept: Tensor | None = None,
) -> ContrastiveSums:
    """query: (N, D), candidates: (M, D), both with rows; known_positive_logit: (N,) positive
    logits where they are not among these; kept: see kept_exponentials, filled."""
    operands = TileOperands.make(query, candidates, problem)
    return forward_sums(operands, known_positive_logit, with_stats, kept)


def forward_sums(
    operands: TileOperands,
    known_positive_logit: Tensor | None,
    with_stats: bool,
    kept: Tensor | None,
) -> ContrastiveSums:
    query, candidates, problem = operands.query, operands.candidates, operands.problem
    tiles = forward_tiles(query, problem)
    positive_logit = None if known_positive_logit is None else known_positive_logit.clone()
    tile_arguments, positive_log2 = operands.tile_arguments(tiles), None
    with device_guard(query):
        if positive_logit is None:
            positive_logit, positive_log2 = positive_logits(operands, tile_arguments)
        sums = empty_sums(
            query,
            problem,
            candidates.shape[0],
            with_stats,
            positive_logit=positive_logit,
            query_inverse_norm=operands.query_inverse_norm,
            candidate_inverse_norm=operands.candidate_inverse_norm,
        )
        plan = plan_programs(
            triton.cdiv(query.shape[0], tiles.block_n),
            triton.cdiv(candidates.shape[0], tiles.block_m),
            program_slots(query),
            tiles,
        )
        tie_lower, tie_upper = None, None
        if with_stats:
            tie_lower, tie_upper = tie_bounds(
                query, candidates, problem, positive_logit, positive_log2
            )
        partials = _empty_partials(sums, plan)
        _contrastive_fwd_kernel[(plan.groups * plan.splits,)](
            **tile_arguments,
            **operands.rule_arguments(),
            **{f"{name}_ptr": part for name, part in partials._asdict().items()},
            tie_lower_ptr=tie_lower,
            tie_upper_ptr=tie_upper,
            kept=None if kept is None else operands.output(kept, tiles),
            stride_kn=0 if kept is None else kept.stride(0),
            num_groups=plan.groups,
            blocks_per_group=plan.blocks_per_group,
            blocks_per_split=plan.blocks_per_split,
            WITH_STATS=with_stats,
            DTYPE=TRITON_DTYPES[SHORT_NAMES[query.dtype]],
        )
        join(partials, sums, problem.bound is not None)
    return sums


def _empty_partials(sums: ContrastiveSums, plan: ProgramPlan) -> Partials:
    positive_logit, num_keys = sums.positive_logit, sums.column_negative_lse.shape[0]
    counts = positive_logit.new_empty(2, plan.splits, sums.num_above.shape[0], dtype=torch.int32)
    return Partials(
        row_partial=positive_logit.new_empty(plan.splits, positive_logit.shape[0]),
        column_partial=positive_logit.new_empty(plan.groups, num_keys),
        row_positive=positive_logit.new_empty(2, plan.splits, sums.row_positive_sum.shape[0]),
        column_positive=positive_logit.new_empty(2, plan.groups, sums.column_positive_sum.shape[0]),
        row_counts=counts,
    )
