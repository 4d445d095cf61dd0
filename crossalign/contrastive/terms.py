"""From the sums of a pass to the loss and its statistics: arithmetic on vectors, one per pair."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from crossalign.contrastive.options import LossArguments
from crossalign.contrastive.problem import ContrastiveSums
from crossalign.precision import accumulator

# Above it softplus(x) - x < exp(-50): nothing is lost in float64 either.
SOFTPLUS_THRESHOLD = 50.0
_LARGEST_EXPONENT = 80.0  # its exponential is finite in float32


class ContrastiveStats(NamedTuple):
    """Statistics of a batch, computed with its loss: 0-d float32 tensors without gradient.

    Example:
        >>> query = torch.eye(4)
        >>> stats = fused_contrastive_loss(query, query, return_stats=True)[1]
        >>> tuple(round(value.item(), 2) for value in stats)
        (1.0, 1.0, 1.0, 20.0)
    """

    accuracy: Tensor  # share of queries whose own key has strictly the highest logit
    mean_reciprocal_rank: Tensor  # rank: 1 + keys with a logit strictly above the own key's
    positive_similarity: Tensor  # mean similarity, before scaling, of each query and its own key
    logsumexp: Tensor  # mean over the rows


def scale_tensor(temperature: float | Tensor, query: Tensor) -> Tensor:
    """() 1 / temperature on the query's device, in the accumulator dtype."""
    dtype = accumulator(query.dtype)
    if isinstance(temperature, Tensor):
        return temperature.to(device=query.device, dtype=dtype).reciprocal()
    return torch.full((), 1.0 / float(temperature), device=query.device, dtype=dtype)


class TermRules(NamedTuple):
    """How a term is formed from the sums of its blocks."""

    label_smoothing: float = 0.0
    debias: Tensor | None = None  # () or (N,): the prior of a false negative
    scale: Tensor | None = None  # () 1 / temperature, for debias
    has_own_key: bool = True  # False: only ids tell positives, and a row may have none
    positive_bias: Tensor | None = None  # (N,) what weights add to the positives' sum of logits

    @property
    def needs_logits(self) -> bool:
        """Whether sums and counts of logits are asked for."""
        return self.label_smoothing != 0 or self.debias is not None


def term_rules(arguments: LossArguments, scale: Tensor) -> TermRules:
    options = arguments.options
    debias = None
    if options.is_debiased:
        debias = torch.as_tensor(options.debias, dtype=scale.dtype, device=scale.device).detach()
    smoothing = float(options.label_smoothing)
    bias = None if arguments.has_own_key else _positive_bias(arguments, scale)
    return TermRules(smoothing, debias, scale, arguments.has_own_key, bias)


def _positive_bias(arguments: LossArguments, scale: Tensor) -> Tensor | None:
    """(N,) hard_negative_weight for each positive that is a hard negative of its query."""
    ids, of_negatives, owner = arguments.ids, arguments.negative_ids, arguments.negative_owner
    if ids is None or of_negatives is None or owner is None or not len(ids):
        return None
    is_positive = (ids[owner.long()] == of_negatives).to(scale.dtype)
    weight = float(arguments.options.hard_negative_weight)
    return torch.zeros_like(ids, dtype=scale.dtype).index_put(
        (owner.long(),), weight * is_positive, accumulate=True
    )


class BlockSums(NamedTuple):
    """Of the blocks of one term, (N,) each or of size 0."""

    rest: Tensor  # log-sum-exp of all logits but the positive's
    positive_sum: Tensor  # of further positives
    positive_count: Tensor
    logit_sum: Tensor  # of all logits but the positive's
    logit_count: Tensor


def row_block(sums: ContrastiveSums) -> BlockSums:
    return BlockSums(
        sums.row_negative_lse,
        sums.row_positive_sum,
        sums.row_positive_count,
        sums.row_logit_sum,
        sums.row_logit_count,
    )


def column_block(sums: ContrastiveSums) -> BlockSums:
    return BlockSums(
        sums.column_negative_lse,
        sums.column_positive_sum,
        sums.column_positive_count,
        sums.column_logit_sum,
        sums.column_logit_count,
    )


def joint_block(blocks: Sequence[BlockSums]) -> BlockSums:
    """Blocks put together; the first one has the further positives."""
    first, *others = blocks
    for other in others:
        first = first._replace(
            rest=_log_add(first.rest, other.rest),
            logit_sum=first.logit_sum + other.logit_sum,
            logit_count=first.logit_count + other.logit_count,
        )
    return first


def _log_add(left: Tensor, right: Tensor) -> Tensor:
    """logaddexp, with the gradient 0 and not NaN where nothing is added to nothing."""
    is_nothing = (left == -torch.inf) & (right == -torch.inf)
    parts = (part.masked_fill(is_nothing, 0) for part in (left, right))
    return torch.logaddexp(*parts).masked_fill(is_nothing, -torch.inf)


_PLAIN = TermRules()


def pair_terms(sums: ContrastiveSums, symmetric: bool) -> Tensor:
    """(N,) l_i of every pair: its row term, or the mean of its row and its column term."""
    terms = block_term(sums.positive_logit, row_block(sums), _PLAIN)
    if not symmetric:
        return terms
    return (terms + block_term(sums.positive_logit, column_block(sums), _PLAIN)) / 2


def block_term(
    positive_logit: Tensor, block: BlockSums, rules: TermRules, num_positives: int = 1
) -> Tensor:
    """(N,) log of the denominator minus the mean logit of the positives.

    num_positives: how often the pair's own positive is in the blocks.
    """
    if not rules.has_own_key:
        return _term_of_ids(block, rules)
    rest, _, _, _ = _debiased(positive_logit, block, rules)
    if num_positives > 1:
        rest = rest - math.log(num_positives)
    # 0 * own is NaN for an infinite positive logit; without it the softplus would be 0.
    term = F.softplus(rest - positive_logit, threshold=SOFTPLUS_THRESHOLD) + 0 * positive_logit
    if num_positives > 1:
        term = term + math.log(num_positives)
    if block.positive_sum.shape == positive_logit.shape:
        further = block.positive_sum - block.positive_count * positive_logit
        term = term - (1 - rules.label_smoothing) * further / (1 + block.positive_count)
    if rules.label_smoothing:
        others = block.logit_sum - block.logit_count * positive_logit
        term = term - rules.label_smoothing * others / (num_positives + block.logit_count)
    return term


def _term_of_ids(block: BlockSums, rules: TermRules) -> Tensor:
    """The term where no key is a row's own; 0 where it has no positive."""
    count = block.positive_count.clamp_min(1)
    term = block.rest - (1 - rules.label_smoothing) * block.positive_sum / count
    if rules.label_smoothing:
        term = term - rules.label_smoothing * block.logit_sum / block.logit_count.clamp_min(1)
    return torch.where(block.positive_count > 0, term, 0)


def _debiased(
    positive_logit: Tensor, block: BlockSums, rules: TermRules
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """The rest as debias corrects it, and its derivatives by (own, rest, scale)."""
    if rules.debias is None or rules.scale is None:
        return block.rest, None, None, None
    is_empty = block.logit_count == 0
    log_count = block.logit_count.clamp_min(1).log()
    mean = block.rest.masked_fill(is_empty, 0) - log_count
    share = rules.debias * (positive_logit - mean).clamp_max(_LARGEST_EXPONENT).exp()
    is_left = share < 1
    share = torch.where(is_left, share, 0)
    corrected = mean + torch.log1p(-share) - torch.log1p(-rules.debias)
    is_left = is_left & (corrected > -rules.scale)
    rest = log_count + torch.where(is_left, corrected, -rules.scale)
    by_own = torch.where(is_left, -share / (1 - share), 0).masked_fill(is_empty, 0)
    by_rest = torch.where(is_left, 1 / (1 - share), 0).masked_fill(is_empty, 0)
    by_scale = (is_left | is_empty).logical_not().to(rest.dtype).neg()
    return rest.masked_fill(is_empty, -torch.inf), by_own, by_rest, by_scale


class TermGradients(NamedTuple):
    """Derivatives of block_term, (N,) each; None or size 0: nothing flows."""

    positive_logit: Tensor
    rest: Tensor
    positive_sum: Tensor
    logit_sum: Tensor | None
    scale: Tensor | None


def term_gradients(positive_logit: Tensor, block: BlockSums, rules: TermRules) -> TermGradients:
    """Derivatives of block_term with one positive in the blocks."""
    smoothing, logit_sum = rules.label_smoothing, None
    if not rules.has_own_key:
        has_positive = (block.positive_count > 0).to(positive_logit.dtype)
        by_positive = -(1 - smoothing) * has_positive / block.positive_count.clamp_min(1)
        if smoothing:
            logit_sum = -smoothing * has_positive / block.logit_count.clamp_min(1)
        none = torch.zeros_like(positive_logit)
        return TermGradients(none, has_positive, by_positive, logit_sum, None)
    rest, rest_by_own, rest_by_rest, rest_by_scale = _debiased(positive_logit, block, rules)
    by_rest = torch.sigmoid(rest - positive_logit)
    by_own, by_scale, by_positive = -by_rest, None, block.positive_count
    if rest_by_own is not None and rest_by_rest is not None and rest_by_scale is not None:
        by_own = by_own + by_rest * rest_by_own
        by_scale = by_rest * rest_by_scale
        by_rest = by_rest * rest_by_rest
    if block.positive_count.shape == positive_logit.shape:
        by_positive = -(1 - smoothing) / (1 + block.positive_count)
        by_own = by_own - block.positive_count * by_positive
    if smoothing:
        logit_sum = -smoothing / (1 + block.logit_count)
        by_own = by_own - block.logit_count * logit_sum
    return TermGradients(by_own, by_rest, by_positive, logit_sum, by_scale)


def counted_weights(sums: ContrastiveSums, weights: Tensor | None) -> Tensor:
    """(N,) the weights of rows that have a positive, told by ids; 0 for the others."""
    has_positive = (sums.row_positive_count > 0).to(sums.row_positive_count.dtype)
    return has_positive if weights is None else weights.to(has_positive.dtype) * has_positive


def stat_rows(sums: ContrastiveSums, rules: TermRules) -> Tensor:
    """(4, N): each query's share in the statistics, in the order of ContrastiveStats; 0 of a row
    without a positive."""
    assert rules.scale is not None
    positive_logit, lse = sums.positive_logit.detach(), sums.row_negative_lse.detach()
    is_first = ((sums.num_above + sums.num_tied) == 0).to(lse.dtype)
    reciprocal_rank = (1 + sums.num_above).to(lse.dtype).reciprocal()
    scale, total = rules.scale.detach(), positive_logit
    count = torch.ones_like(positive_logit)
    if rules.has_own_key:
        lse = torch.logaddexp(positive_logit, lse)
    else:
        total, count = sums.row_positive_sum.detach(), sums.row_positive_count.clamp_min(1)
        if rules.positive_bias is not None:
            total = total - rules.positive_bias
    rows = torch.stack([is_first, reciprocal_rank, total / count / scale, lse])
    return rows if rules.has_own_key else torch.where(sums.row_positive_count > 0, rows, 0)


def contrastive_stats(sums: ContrastiveSums, rules: TermRules) -> ContrastiveStats:
    """The batch's statistics from the sums of one pass; rows without a positive do not count."""
    rows = stat_rows(sums, rules)
    if rules.has_own_key:
        return ContrastiveStats(*rows.mean(1).float())
    num_rows = (sums.row_positive_count > 0).sum().clamp_min(1)
    return ContrastiveStats(*(rows.sum(1) / num_rows).float())


def warn_without_negatives() -> None:
    _warn(
        "no query has a negative, so the loss is constantly zero; use a larger batch, pass "
        "negatives, or check ids and share_negatives"
    )


def warn_without_positives() -> None:
    _warn(
        "no query has a positive, so the loss is constantly zero; let batches hold several "
        "examples of an id, or check ids and key_ids"
    )


def _warn(message: str) -> None:
    """Blames the first caller outside of this package and of PyTorch."""
    stacklevel, frame = 1, sys._getframe()
    while frame.f_back and frame.f_globals["__name__"].split(".")[0] in ("crossalign", "torch"):
        stacklevel, frame = stacklevel + 1, frame.f_back
    warnings.warn(f"fused_contrastive_loss: {message}", UserWarning, stacklevel=stacklevel)
