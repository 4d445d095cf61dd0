"""From the sums of a pass to the loss and its statistics: arithmetic on vectors, one per pair."""

from __future__ import annotations

import sys
import warnings
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from crossalign.contrastive.problem import ContrastiveProblem, ContrastiveSums, LossArguments
from crossalign.precision import accumulator

# Within it exp(z), and its sum over 2^20 candidates, is a normal float32 number: no maximum need be
# subtracted first.
LARGEST_BOUND = 40.0
# Above it softplus(x) - x < exp(-50): nothing is lost in float64 either.
SOFTPLUS_THRESHOLD = 50.0


class ContrastiveStats(NamedTuple):
    """What one pass tells about a batch: 0-d float32 tensors without gradient."""

    accuracy: Tensor  # share of queries whose own key has strictly the highest logit
    mean_reciprocal_rank: Tensor  # rank: 1 + keys with a logit strictly above the own key's
    positive_similarity: Tensor  # mean similarity, before scaling, of each query and its own key
    logsumexp: Tensor  # mean over the rows


def scale_tensor(temperature: float | Tensor, query: Tensor) -> Tensor:
    """() 1 / temperature on the query's device, in the accumulator dtype."""
    dtype = accumulator(query.dtype)
    if isinstance(temperature, Tensor):
        return temperature.to(device=query.device, dtype=dtype).reciprocal()
    return torch.full((), 1.0 / temperature, device=query.device, dtype=dtype)


def logit_bound(
    temperature: float | Tensor, hard_negative_weight: float, normalize: bool
) -> float | None:
    """What no logit exceeds in size, where that is known and small enough, else None."""
    if not normalize or isinstance(temperature, Tensor):
        return None
    bound = 1.0 / temperature + abs(hard_negative_weight)
    return bound if bound < LARGEST_BOUND else None


def build_problem(arguments: LossArguments) -> ContrastiveProblem:
    """Of this process's own rows: the candidates are its keys, then its negatives."""
    ids, negative_ids = arguments.ids, arguments.negative_ids
    query_ids = None if ids is None else ids.long()
    candidate_ids = query_ids
    if query_ids is not None and negative_ids is not None:
        candidate_ids = torch.cat([query_ids, negative_ids.long()])
    owner, weight = arguments.negative_owner, float(arguments.hard_negative_weight)
    return ContrastiveProblem(
        scale=scale_tensor(arguments.temperature, arguments.query),
        query_ids=query_ids,
        candidate_ids=candidate_ids,
        negative_owner=None if owner is None else owner.long(),
        num_keys=arguments.key.shape[0],
        label_offset=0,
        hard_negative_weight=weight,
        share_negatives=bool(arguments.share_negatives),
        multi_positive=arguments.same_id == "positive" and ids is not None,
        symmetric=bool(arguments.symmetric),
        normalize=bool(arguments.normalize),
        bound=logit_bound(arguments.temperature, weight, arguments.normalize),
    )


def pair_terms(sums: ContrastiveSums, symmetric: bool) -> Tensor:
    """(N,) l_i of every pair: its row term, or the mean of its row and its column term."""
    terms = _term(
        sums.positive_logit, sums.row_negative_lse, sums.row_positive_sum, sums.row_positive_count
    )
    if not symmetric:
        return terms
    candidates = _term(
        sums.positive_logit,
        sums.column_negative_lse,
        sums.column_positive_sum,
        sums.column_positive_count,
    )
    return (terms + candidates) / 2


def _term(
    positive_logit: Tensor, rest: Tensor, positive_sum: Tensor, positive_count: Tensor
) -> Tensor:
    """logsumexp over own and rest, minus the mean logit of the positives; all (N,)."""
    # 0 * own is NaN for an infinite positive logit, which alone would make the softplus 0.
    term = F.softplus(rest - positive_logit, threshold=SOFTPLUS_THRESHOLD) + 0 * positive_logit
    if positive_sum.shape != positive_logit.shape:
        return term
    return term - (positive_sum - positive_count * positive_logit) / (1 + positive_count)


def term_gradients(
    positive_logit: Tensor, rest: Tensor, positive_count: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Derivatives of _term by (own, rest, positive_sum); positive_count of size 0: no positives."""
    by_negative_lse = torch.sigmoid(rest - positive_logit)
    if positive_count.shape != positive_logit.shape:
        return -by_negative_lse, by_negative_lse, positive_count
    by_positive = -1 / (1 + positive_count)
    return -by_negative_lse - positive_count * by_positive, by_negative_lse, by_positive


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
    return weighted.sum() if reduction == "sum" else weighted.sum() / weights.sum()


def stat_rows(sums: ContrastiveSums, scale: Tensor) -> Tensor:
    """(4, N): each query's share in the statistics, in the order of ContrastiveStats."""
    positive_logit, rest = sums.positive_logit.detach(), sums.row_negative_lse.detach()
    is_first = (sums.num_above + sums.num_tied) == 0
    rank = (1 + sums.num_above).to(positive_logit.dtype)
    return torch.stack(
        [
            is_first.to(positive_logit.dtype),
            rank.reciprocal(),
            positive_logit / scale.detach(),
            torch.logaddexp(positive_logit, rest),
        ]
    )


def contrastive_stats(sums: ContrastiveSums, scale: Tensor) -> ContrastiveStats:
    """The batch's statistics from the sums of one pass."""
    return ContrastiveStats(*stat_rows(sums, scale).mean(1).float())


def warn_without_negatives() -> None:
    """Blames the first caller outside of this package and of PyTorch."""
    stacklevel, frame = 1, sys._getframe()
    while frame.f_back and frame.f_globals["__name__"].split(".")[0] in ("crossalign", "torch"):
        stacklevel, frame = stacklevel + 1, frame.f_back
    warnings.warn(
        "fused_contrastive_loss: no query has a negative, so the loss is constantly zero; use "
        "a larger batch, pass negatives, or check ids and share_negatives",
        UserWarning,
        stacklevel=stacklevel,
    )
