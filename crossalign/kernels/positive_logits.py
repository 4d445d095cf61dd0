"""The logit of every query and its own key, before the pass over all candidates.

    own[i] = scale * <q_i, k_own(i)> * rq_i * rk_own(i)

Computed by the same tile products as that pass, so that a key equal to the own one ties with it to
the last bit. Costs one tile per row block.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from crossalign.contrastive.problem import ContrastiveProblem, tie_slack
from crossalign.kernels.contrastive_logits import (
    BATCH_SIZES,
    LN_2,
    LOG2_E,
    label_mask,
    scaled_tile,
    similarity_tile,
)
from crossalign.kernels.operands import TileOperands
from crossalign.kernels.tiles import Tiles


@triton.jit(do_not_specialize=BATCH_SIZES)
def _positive_logits_kernel(
    query,  # (N, D) descriptor, or pointer
    candidates,  # (M, D) descriptor, or pointer
    rules,  # TileRules
    positive_logit_ptr,  # (N,) out, in natural units
    positive_log2_ptr,  # (N,) out, as the pass over all candidates compares it
    strides,  # of query and candidates
    weights,  # unread
    num_queries, num_candidates, num_keys, num_ids, num_features, label_offset,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
    flags: tl.constexpr,  # TileFlags
):  # fmt: skip
    first_row = tl.program_id(0) * BLOCK_N
    offs_n = first_row + tl.arange(0, BLOCK_N)
    positive_logit = tl.zeros((BLOCK_N,), flags.ACC_DTYPE)
    for first_local_column in range(0, BLOCK_N, BLOCK_M):
        first_column = first_row + label_offset + first_local_column
        similarity = similarity_tile(
            query, candidates, strides[0], strides[1], num_queries, num_candidates, first_row,
            first_column, num_features, BLOCK_N, BLOCK_M, BLOCK_D, flags,
        )  # fmt: skip
        offs_m = first_column + tl.arange(0, BLOCK_M)
        logits = scaled_tile(
            similarity, rules.scale_ptr, rules.query_inverse_norm_ptr,
            rules.candidate_inverse_norm_ptr, offs_n, offs_m, num_queries, num_candidates,
            flags.NORMALIZE,
        )  # fmt: skip
        is_label = label_mask(offs_n, offs_m, label_offset, num_keys)
        positive_logit += tl.sum(tl.where(is_label, logits, 0.0), 1)
    tl.store(positive_log2_ptr + offs_n, positive_logit, mask=offs_n < num_queries)
    tl.store(positive_logit_ptr + offs_n, positive_logit * LN_2, mask=offs_n < num_queries)


def positive_logits(operands: TileOperands, tiles: Tiles) -> tuple[Tensor, Tensor]:
    """(N,) in natural and in log2 units; 0 where the own key is not among the candidates.

    tiles: those of the pass over all candidates.
    """
    num_queries, scale = operands.query.shape[0], operands.problem.scale
    positive_logit, positive_log2 = scale.new_empty(num_queries), scale.new_empty(num_queries)
    _positive_logits_kernel[(triton.cdiv(num_queries, tiles.block_n),)](
        **operands.product_arguments(tiles),
        positive_logit_ptr=positive_logit,
        positive_log2_ptr=positive_log2,
        strides=operands.strides,
    )
    return positive_logit, positive_log2


def tie_bounds(
    query: Tensor,
    candidates: Tensor,
    problem: ContrastiveProblem,
    positive_logit: Tensor,
    positive_log2: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """(N,), (N,) in log2 units: the least and the largest logit that tie with each own one.

    positive_log2: the positive logits in those units, if they were formed here. Others are known
    only in natural units, to which several neighbors round: all of them tie.
    """
    if positive_log2 is not None and query.is_cuda:
        return positive_log2, positive_log2
    slack = tie_slack(query, candidates, problem, positive_logit)
    lower, upper = positive_logit - slack, positive_logit + slack
    least, largest = _neighbors(lower), _neighbors(upper)
    is_within = least * LN_2.value >= lower[:, None], largest * LN_2.value <= upper[:, None]
    least = torch.where(is_within[0], least, torch.inf).amin(1)
    largest = torch.where(is_within[1], largest, -torch.inf).amax(1)
    return torch.where(lower.isnan(), lower, least), torch.where(upper.isnan(), upper, largest)


def _neighbors(logits: Tensor) -> Tensor:
    """(N,) in natural units -> (N, 9) in log2 units: the conversion and the floats next to it."""
    bits = torch.int64 if logits.dtype == torch.float64 else torch.int32
    steps = torch.arange(-4, 5, dtype=bits, device=logits.device)
    converted: Tensor = logits * LOG2_E.value
    return (converted.view(bits)[:, None] + steps).view(logits.dtype)
