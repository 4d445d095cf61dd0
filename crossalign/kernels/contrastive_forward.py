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
from crossalign.kernels.contrastive_logits import BATCH_SIZES, LN_2, ruled_logits
from crossalign.kernels.contrastive_sums import (
    add_exponentials,
    carry_best,
    carry_counts,
    carry_logits,
    counted_logits,
)
from crossalign.kernels.kept_exponentials import keep_exponentials
from crossalign.kernels.launch import device_guard
from crossalign.kernels.operands import SHORT_NAMES, TRITON_DTYPES, TileOperands
from crossalign.kernels.positive_logits import positive_logits, tie_bounds
from crossalign.kernels.tiles import ProgramPlan, forward_tiles, plan_programs, program_slots


@triton.jit(do_not_specialize=BATCH_SIZES)
def _contrastive_fwd_kernel(
    query,  # (N, D) descriptor, or pointer
    candidates,  # (M, D) descriptor, or pointer
    kept,  # (N or more, M or more) out, descriptor, pointer or None: e^z / norm of the candidate
    rules,  # TileRules
    tie_bounds,  # (N,), (N,): a logit of at least the first ties, above the second it is above
    out,  # Partials
    strides,  # of query, candidates, kept
    weights,  # hard_negative_weight, hardness
    num_queries, num_candidates, num_keys, num_ids, num_features, label_offset,
    num_groups, blocks_per_group, blocks_per_split,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
    flags: tl.constexpr,  # TileFlags
):  # fmt: skip
    """Adds the tiles of this program's rectangle, row group times column split, to its sums."""
    group = tl.program_id(0) % num_groups
    split = tl.program_id(0) // num_groups
    row_lines = (tl.num_programs(0) // num_groups).to(tl.int64) * num_queries
    column_lines = num_groups.to(tl.int64) * num_keys
    no_sum = 0.0 if flags.IS_BOUNDED else float("-inf")
    row_sum = tl.full((BLOCK_N,), no_sum, flags.ACC_DTYPE)
    positive_sum = tl.zeros((BLOCK_N,), flags.ACC_DTYPE)
    positive_count = tl.zeros((BLOCK_N,), flags.ACC_DTYPE)
    logit_sum, logit_count = positive_sum, positive_count
    best = tl.full((BLOCK_N,), float("-inf"), flags.ACC_DTYPE)
    num_above = tl.zeros((BLOCK_N,), tl.int32)
    num_at_least = tl.zeros((BLOCK_N,), tl.int32)
    # One flat loop: the next tile's loads overlap this one's exponentials.
    for tile in tl.range(0, blocks_per_group * blocks_per_split, flatten=True):
        first_row = (group * blocks_per_group + tile // blocks_per_split) * BLOCK_N
        first_column = (split * blocks_per_split + tile % blocks_per_split) * BLOCK_M
        plain, logits = ruled_logits(
            query, candidates, rules, strides, weights, first_row, first_column, num_queries,
            num_candidates, num_keys, num_ids, num_features, label_offset, BLOCK_N, BLOCK_M,
            BLOCK_D, flags,
        )  # fmt: skip
        offs_n = first_row + tl.arange(0, BLOCK_N)
        offs_m = first_column + tl.arange(0, BLOCK_M)
        in_range_n = offs_n < num_queries
        is_key = offs_m < num_keys
        is_first = tile % blocks_per_split == 0
        is_begun = tl.where(tile >= blocks_per_split, is_key, False)
        row_offs = split.to(tl.int64) * num_queries + offs_n
        column_offs = group.to(tl.int64) * num_keys + offs_m
        of_rows, of_columns, is_positive = counted_logits(
            plain, logits, rules, offs_n, offs_m, num_queries, num_candidates, num_keys, num_ids,
            flags,
        )  # fmt: skip
        if flags.MULTI_POSITIVE:
            positive_sum, positive_count = carry_logits(
                positive_sum, positive_count, of_rows, is_positive, of_columns, is_positive,
                out.row_positive + row_offs, out.column_positive + column_offs, row_lines,
                column_lines, in_range_n, is_key, is_begun, is_first, flags.SYMMETRIC,
            )  # fmt: skip
        if flags.WITH_BEST:
            best = carry_best(
                best, of_rows, is_positive, out.row_best + row_offs, in_range_n, is_first
            )
        if flags.WITH_LOGIT_SUMS:
            logit_sum, logit_count = carry_logits(
                logit_sum, logit_count, of_rows, of_rows > float("-inf"), of_columns,
                of_columns > float("-inf"), out.row_logits + row_offs,
                out.column_logits + column_offs, row_lines, column_lines, in_range_n, is_key,
                is_begun, is_first, flags.SYMMETRIC,
            )  # fmt: skip
        if flags.WITH_STATS:
            num_above, num_at_least = carry_counts(
                num_above, num_at_least, of_rows, is_positive, tie_bounds, offs_n, in_range_n,
                out.row_counts + row_offs, row_lines, is_first, flags.MULTI_POSITIVE,
            )  # fmt: skip
        row_sum = add_exponentials(
            tl.where(is_first, no_sum, row_sum), of_rows, of_columns,
            out.column_partial + column_offs, is_key, is_begun, flags,
        )  # fmt: skip
        tl.store(out.row_partial + row_offs, row_sum, mask=in_range_n)
        if kept is not None:
            keep_exponentials(
                kept, of_rows, rules.candidate_inverse_norm_ptr, strides[2], first_row,
                first_column, num_queries, num_candidates, flags.USE_DESCRIPTORS, flags.DTYPE,
            )  # fmt: skip


def contrastive_fwd(
    query: Tensor,
    candidates: Tensor,
    problem: ContrastiveProblem,
    known_positive_logit: Tensor | None,
    with_stats: bool,
    kept: Tensor | None = None,
    terms: Tensor | None = None,
) -> ContrastiveSums:
    """query: (N, D), candidates: (M, D), both with rows; known_positive_logit: (N,) positive
    logits where they are not among these; kept: see kept_exponentials, filled; terms: (N,), filled
    with the terms of the pairs, if each query's key is the candidate of its index."""
    operands = TileOperands.make(query, candidates, problem)
    return forward_sums(operands, known_positive_logit, with_stats, kept, terms)


def forward_sums(
    operands: TileOperands,
    known_positive_logit: Tensor | None,
    with_stats: bool,
    kept: Tensor | None,
    terms: Tensor | None = None,
) -> ContrastiveSums:
    problem = operands.problem
    positive_log2 = None
    with device_guard(operands.query):
        if known_positive_logit is not None:
            positive_logit = known_positive_logit.clone()
        elif not problem.exclude_label:
            positive_logit, positive_log2 = positive_logits(
                operands, forward_tiles(operands.query, problem)
            )
        elif not problem.multi_positive:
            positive_logit = problem.scale.new_full((operands.query.shape[0],), -torch.inf)
        else:
            # The statistics rank the best positive, which is known when all have been seen.
            sums, positive_log2 = _launch(operands, None, None, None)
            if not with_stats:
                return sums
            positive_logit = sums.positive_logit
        bounds = None
        if with_stats:
            pair = (operands.query, operands.candidates)
            bounds = tie_bounds(*pair, problem, positive_logit, positive_log2)
        return _launch(operands, positive_logit, bounds, kept, terms)[0]


def _launch(
    operands: TileOperands,
    positive_logit: Tensor | None,
    bounds: tuple[Tensor, Tensor] | None,
    kept: Tensor | None,
    terms: Tensor | None = None,
) -> tuple[ContrastiveSums, Tensor | None]:
    """The sums; where positive_logit is None, with the best positive, also in log2 units.

    bounds: see tie_bounds; given for the statistics.
    """
    query, problem = operands.query, operands.problem
    tiles = forward_tiles(query, problem)
    sums = empty_sums(
        query,
        problem,
        operands.candidates.shape[0],
        bounds is not None,
        positive_logit=query.new_empty(0) if positive_logit is None else positive_logit,
        query_inverse_norm=operands.query_inverse_norm,
        candidate_inverse_norm=operands.candidate_inverse_norm,
    )
    plan = plan_programs(
        triton.cdiv(query.shape[0], tiles.block_n),
        triton.cdiv(operands.candidates.shape[0], tiles.block_m),
        program_slots(query),
        tiles,
    )
    partials = _empty_partials(sums, plan, query.shape[0] if positive_logit is None else 0)
    _contrastive_fwd_kernel[(plan.groups * plan.splits,)](
        **operands.tile_arguments(
            tiles,
            WITH_STATS=bounds is not None,
            WITH_BEST=positive_logit is None,
            DTYPE=TRITON_DTYPES[SHORT_NAMES[query.dtype]],
        ),
        kept=None if kept is None else operands.output(kept, tiles),
        tie_bounds=(None, None) if bounds is None else bounds,
        out=partials,
        strides=(*operands.strides, 0 if kept is None else kept.stride(0)),
        num_groups=plan.groups,
        blocks_per_group=plan.blocks_per_group,
        blocks_per_split=plan.blocks_per_split,
    )
    join(partials, sums, problem.bound is not None, terms)
    if positive_logit is not None:
        return sums, None
    best = partials.row_best.amax(0)
    return sums._replace(positive_logit=best * LN_2.value), best


def _empty_partials(sums: ContrastiveSums, plan: ProgramPlan, num_best: int) -> Partials:
    """num_best: rows whose best positive is asked for."""
    like, splits, groups = sums.row_negative_lse, plan.splits, plan.groups
    num_counts, num_keys = sums.num_above.shape[0], sums.column_negative_lse.shape[0]
    return Partials(
        row_partial=like.new_empty(splits, like.shape[0]),
        column_partial=like.new_empty(groups, num_keys),
        row_positive=like.new_empty(2, splits, sums.row_positive_sum.shape[0]),
        column_positive=like.new_empty(2, groups, sums.column_positive_sum.shape[0]),
        row_logits=like.new_empty(2, splits, sums.row_logit_sum.shape[0]),
        column_logits=like.new_empty(2, groups, sums.column_logit_sum.shape[0]),
        row_best=like.new_empty(splits, num_best),
        row_counts=like.new_empty(2, splits, num_counts, dtype=torch.int32),
    )
