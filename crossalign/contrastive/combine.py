"""From the blocks of the chosen directions to a term for each pair, and from terms to the loss."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from crossalign.argument_checks import values_may_be_read
from crossalign.contrastive.choices import Direction
from crossalign.contrastive.ops import pair_losses
from crossalign.contrastive.options import LossOptions
from crossalign.contrastive.problem import ContrastiveSums
from crossalign.contrastive.terms import BlockSums, TermRules, block_term, joint_block


def combined_terms(
    sums: ContrastiveSums,
    blocks: Mapping[Direction, BlockSums],
    rules: TermRules,
    options: LossOptions,
    use_triton: bool,
) -> Tensor:
    """(N,) l_i. sums: of the pass over query_to_key."""
    options = options.in_both_directions()
    is_one_pass = len(blocks) == 1 + (sums.column_negative_lse.shape[0] > 0)
    is_mean = len(blocks) == 1 or options.partition == "per_direction"
    if rules.has_own_key and not rules.needs_logits and is_one_pass and is_mean:
        return pair_losses(sums, len(blocks) > 1, use_triton=use_triton)
    positive_logit = sums.positive_logit
    if options.partition == "per_direction":
        terms = [block_term(positive_logit, block, rules) for block in blocks.values()]
        return torch.stack(terms).mean(0)
    num_positives = 1 + ("key_to_query" in blocks)
    return block_term(positive_logit, joint_block(list(blocks.values())), rules, num_positives)


def has_no_rest(rests: Sequence[Tensor]) -> bool:
    """Whether no row has any logit but its positive's, where that may be read."""
    if not values_may_be_read(rests[0]):
        return False
    return bool((functools.reduce(torch.logaddexp, rests) == -math.inf).all())


def reduce_terms(terms: Tensor, weights: Tensor | None, reduction: str) -> Tensor:
    """(N,) terms -> the weighted mean or sum, or the weighted terms."""
    if weights is None:
        if reduction == "none":
            return terms
        return terms.sum() if reduction == "sum" else terms.mean()
    weights = weights.to(terms.dtype)
    weighted = weights * terms
    if reduction == "none":
        return weighted
    if reduction == "sum":
        return weighted.sum()
    total = weights.sum()  # 0 only where no row has a positive, and then so is the loss
    return weighted.sum() / torch.where(total > 0, total, 1)


def term_weights(
    weights: Tensor | None, reduction: str, num_terms: int, dtype: torch.dtype
) -> tuple[Tensor | None, int]:
    """(w, n): d loss / d term of "mean" and "sum" is w / n; w: (N,), or None: 1."""
    if weights is None:
        return None, num_terms if reduction == "mean" else 1
    weights = weights.to(dtype)
    return weights / weights.sum() if reduction == "mean" else weights.contiguous(), 1
