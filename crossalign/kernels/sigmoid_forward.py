"""The terms of the pairwise sigmoid loss from one pass over the logits, without the logits.

    term[i] = sum over j of softplus(-y z[i, j])

Each program owns a group of row blocks and a split of the keys and walks its tiles in a fixed
order; the sums of its rows stay in registers. Partial sums of the splits are added in their order,
so the same input gives the same bits.

2 N M D operations; a tile reads (BLOCK_N + BLOCK_M) D elements, mostly from L2; writes O(N) numbers
per split. Accumulates in float32 (float64 for float64). Source: Zhai et al. 2023 (SigLIP).
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from crossalign.contrastive.sigmoid.problem import SigmoidProblem, SigmoidSums
from crossalign.kernels.contrastive_logits import BATCH_SIZES, LOG2_E
from crossalign.kernels.launch import device_guard
from crossalign.kernels.operands import TileOperands
from crossalign.kernels.sigmoid_logits import negate_positives, softplus, unbiased_logits
from crossalign.kernels.tiles import forward_tiles, plan_programs, program_slots


@triton.jit(do_not_specialize=BATCH_SIZES)
def _sigmoid_fwd_kernel(
    query,  # (N, D) descriptor, or pointer
    candidates,  # (M, D) descriptor, or pointer
    rules,  # TileRules
    bias_ptr,  # ()
    row_partial_ptr,  # (splits, N) out
    strides,  # of query and candidates
    weights,  # unread
    num_queries, num_candidates, num_keys, num_ids, num_features, label_offset,
    num_groups, blocks_per_group, blocks_per_split,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
    flags: tl.constexpr,  # TileFlags
):  # fmt: skip
    """Adds the tiles of this program's rectangle, row group times key split, to its sums."""
    group = tl.program_id(0) % num_groups
    split = tl.program_id(0) // num_groups
    row_sum = tl.zeros((BLOCK_N,), flags.ACC_DTYPE)
    # One flat loop: the next tile's loads overlap this one's exponentials.
    for tile in tl.range(0, blocks_per_group * blocks_per_split, flatten=True):
        first_row = (group * blocks_per_group + tile // blocks_per_split) * BLOCK_N
        first_column = (split * blocks_per_split + tile % blocks_per_split) * BLOCK_M
        logits = unbiased_logits(
            query, candidates, rules, strides, first_row, first_column, num_queries,
            num_candidates, num_features, BLOCK_N, BLOCK_M, BLOCK_D, flags,
        )  # fmt: skip
        logits += tl.load(bias_ptr) * LOG2_E
        logits = negate_positives(
            logits, rules, first_row, first_column, num_queries, num_candidates, label_offset,
            BLOCK_N, BLOCK_M, flags.HAS_IDS,
        )  # fmt: skip
        offs_n = first_row + tl.arange(0, BLOCK_N)
        if first_column + BLOCK_M > num_candidates:
            is_key = first_column + tl.arange(0, BLOCK_M) < num_candidates
            logits = tl.where(is_key[None, :], logits, float("-inf"))  # a term of 0
        is_first = tile % blocks_per_split == 0
        row_sum = tl.where(is_first, 0.0, row_sum) + tl.sum(softplus(logits), 1)
        # Stored after every tile, the last store being the whole.
        row_ptrs = row_partial_ptr + split.to(tl.int64) * num_queries + offs_n
        tl.store(row_ptrs, row_sum, mask=offs_n < num_queries)


def sigmoid_fwd(query: Tensor, key: Tensor, problem: SigmoidProblem) -> SigmoidSums:
    """query: (N, D), key: (M, D), both with rows."""
    logits = problem.logits(key.shape[0])
    tiles = forward_tiles(query, logits)
    operands = TileOperands.make(query, key, logits)
    plan = plan_programs(
        triton.cdiv(query.shape[0], tiles.block_n),
        triton.cdiv(key.shape[0], tiles.block_m),
        program_slots(query),
        tiles,
    )
    partial = problem.scale.new_empty(plan.splits, query.shape[0])
    with device_guard(query):
        _sigmoid_fwd_kernel[(plan.groups * plan.splits,)](
            **operands.tile_arguments(tiles),
            bias_ptr=problem.bias,
            row_partial_ptr=partial,
            strides=operands.strides,
            num_groups=plan.groups,
            blocks_per_group=plan.blocks_per_group,
            blocks_per_split=plan.blocks_per_split,
        )
    terms = partial.sum(0)
    return SigmoidSums(terms, operands.query_inverse_norm, operands.candidate_inverse_norm)
