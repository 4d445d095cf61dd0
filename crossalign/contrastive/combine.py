"""From the blocks of the chosen directions to the term of every pair."""

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
    rest = functools.reduce(torch.logaddexp, rests)
    return values_may_be_read(rest) and bool((rest == -math.inf).all())
