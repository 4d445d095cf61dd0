"""The contrastive loss written out: every block of logits, and each option where it acts."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from crossalign.precision import norm_divisor


def contrastive_loss(
    query: Tensor,
    key: Tensor,
    negatives: Tensor | None = None,
    *,
    temperature: float | Tensor = 0.05,
    symmetric: bool = False,
    normalize: bool = True,
    ids: Tensor | None = None,
    negative_ids: Tensor | None = None,
    key_ids: Tensor | None = None,
    same_id: str = "mask",
    negative_owner: Tensor | None = None,
    hard_negative_weight: float = 0.0,
    share_negatives: bool = True,
    directions: Sequence[str] = ("query_to_key",),
    partition: str = "joint",
    false_negative_margin: float | None = None,
    hardness: float = 0.0,
    hardness_on: str = "all",
    label_smoothing: float = 0.0,
    debias: float | Tensor = 0.0,
    exclude_self: bool = False,
    guide_query: Tensor | None = None,
    guide_key: Tensor | None = None,
    guide_negatives: Tensor | None = None,
    guide_margin: float = 0.0,
    guide_margin_type: str = "absolute",
    weights: Tensor | None = None,
    reduction: str = "mean",
    compute_dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Dense InfoNCE with s = 1 / temperature; every block of logits is written out.

    Blocks of pair i: A = s <q_i, K_j> + b[i, j] over all candidates, B = s <k_i, q_j>,
    C = s <q_i, q_j> for j != i, D = s <k_i, K_j> for keys j != i and negatives that i does not own.
    b = hard_negative_weight where i owns j, plus hardness * similarity (a constant) at negatives.
    With P the positives and L the candidates left in the blocks of one term:

        l_i = log Z_i - (1 - label_smoothing) mean_P z - label_smoothing mean_L z

    Z sums e^z over L; with debias t its n negatives, S = sum e^z, count as
    n max((S / n - t e^z_positive) / (1 - t), e^-s). "joint": one term over all blocks;
    "per_direction": the mean of the terms of A and of B. Then the weighted reduction. Left out:
    equal ids (same_id="mask"), the row itself (exclude_self), negatives that i does not own
    (share_negatives=False), similarities above the positive's by more than false_negative_margin
    (owned negatives and positives stay), and guide similarities above the pair's by more than
    guide_margin (positives stay).

    Returns:
        (loss, statistics by name), all in compute_dtype.
    """
    candidates = key if negatives is None else torch.cat([key, negatives])
    sides = _Sides.of(query, candidates, key.shape[0], normalize, compute_dtype)
    masks = _masks(
        sides, ids, key_ids, negative_ids, same_id, negative_owner, share_negatives, exclude_self
    )
    if symmetric:
        directions, partition = ("query_to_key", "key_to_query"), "per_direction"
    guide = _guide(guide_query, guide_key, guide_negatives, compute_dtype)
    margins = (false_negative_margin, guide_margin, guide_margin_type)
    added = (hard_negative_weight, hardness, hardness_on)
    blocks = {
        direction: _block(
            direction, sides, masks, guide, temperature, same_id == "mask", margins, added
        )
        for direction in directions
    }
    scale = 1 / torch.as_tensor(temperature, dtype=compute_dtype, device=query.device)
    terms_of = partial(_term, label_smoothing=label_smoothing, debias=debias, scale=scale)
    if partition == "joint":
        terms = terms_of(list(blocks.values()))
    else:
        terms = torch.stack([terms_of([block]) for block in blocks.values()]).mean(0)
    counts = masks.positive.any(1)  # every row, but with exclude_self or key_ids
    ranked = masks.own if bool(masks.own.any()) else masks.positive
    statistics = _statistics(blocks["query_to_key"], sides.similarity("query_to_key"), ranked)
    loss = _reduced(terms, counts, weights, reduction)
    return loss, {name: value[counts].mean().detach() for name, value in statistics.items()}


def _guide(
    query: Tensor | None, key: Tensor | None, negatives: Tensor | None, dtype: torch.dtype
) -> _Sides | None:
    if query is None or key is None:
        return None
    candidates = key if negatives is None else torch.cat([key, negatives])
    return _Sides.of(query, candidates, key.shape[0], True, dtype)


def _reduced(terms: Tensor, counts: Tensor, weights: Tensor | None, reduction: str) -> Tensor:
    """The weighted reduction over the rows that count."""
    weight = (torch.ones_like(terms) if weights is None else weights.to(terms.dtype)) * counts
    loss = weight * torch.where(counts, terms, 0)
    if reduction == "mean":
        return loss.sum() / (weight.sum() if bool(counts.any()) else 1)
    return loss.sum() if reduction == "sum" else loss


def _block(
    direction: str,
    sides: _Sides,
    masks: _Masks,
    guide: _Sides | None,
    temperature: float | Tensor,
    equal_left_out: bool,
    margins: tuple[float | None, float, str],
    added: tuple[float, float, str],
) -> _Block:
    """One block. margins: of similarity, of the guide, its kind; added: to owned negatives, times
    the similarity, to which negatives."""
    similarity = sides.similarity(direction)
    in_a, width = direction == "query_to_key", similarity.shape[1]
    out, stays = masks.left_out(direction, width), masks.positives(direction, width)
    if equal_left_out:
        out = out | (masks.same[:, :width] & ~stays)
    if margins[0] is not None:
        limit = sides.positive_similarity() + margins[0]
        out = out | ((similarity > limit[:, None]) & ~stays & ~(masks.owned[:, :width] & in_a))
    if guide is not None:
        of_pair = guide.positive_similarity()
        slack = margins[1] * (of_pair.abs() if margins[2] == "relative" else 1)
        out = out | ((guide.similarity(direction) > (of_pair + slack)[:, None]) & ~stays)
    # -inf is what is left out, so an infinite logit is NaN.
    logits = (similarity / temperature).masked_fill(similarity.isinf(), torch.nan)
    if in_a:
        weight, hardness, kind = added
        hard = {"all": masks.owned | True, "in_batch": ~masks.owned, "owned": masks.owned}
        is_hard = (hard[kind] & ~stays).to(similarity.dtype)
        logits = logits + hardness * is_hard * similarity.detach()
        logits = logits + weight * masks.owned.to(similarity.dtype)
    return _Block(logits, ~out, stays)


class _Sides(NamedTuple):
    """Queries (N, D) and candidates (M, D), of length one if asked; the first num_keys are keys."""

    query: Tensor
    candidates: Tensor
    num_keys: int

    @classmethod
    def of(
        cls, query: Tensor, candidates: Tensor, num_keys: int, normalize: bool, dtype: torch.dtype
    ) -> _Sides:
        vectors = (query.to(dtype), candidates.to(dtype))
        if normalize:
            return cls(unit_rows(vectors[0]), unit_rows(vectors[1]), num_keys)
        return cls(*vectors, num_keys)

    def similarity(self, direction: str) -> Tensor:
        """(N, M) or (N, N): the products of a block."""
        key = self.candidates[: self.num_keys]
        left = self.query if direction.startswith("query") else key
        return left @ (self.query if direction.endswith("query") else self.candidates).T

    def positive_similarity(self) -> Tensor:
        """(N,) of each query and its own key, without gradient."""
        return (self.query @ self.candidates[: self.num_keys].T).diagonal().detach()


def unit_rows(x: Tensor) -> Tensor:
    """Rows over max(norm, 1e-12); NaN where the norm overflows the dtype."""
    return x / norm_divisor(x.norm(dim=1, keepdim=True))


class _Masks(NamedTuple):
    """(N, M) booleans: who is what to whom."""

    own: Tensor  # the pair's own key
    positive: Tensor  # own, and with same_id="positive" further ones
    same: Tensor  # equal id
    owned: Tensor  # a negative of this query
    itself: Tensor  # the row itself, which exclude_self leaves out
    private: Tensor  # a negative that counts for another query only

    def left_out(self, direction: str, width: int) -> Tensor:
        """Whatever ids and similarities say."""
        if direction == "query_to_key":
            return self.private | self.itself
        diagonal = torch.eye(*self.own.shape, dtype=torch.bool, device=self.own.device)
        if direction == "key_to_query":
            diagonal = diagonal & False
        return (diagonal | self.owned | self.private)[:, :width]

    def positives(self, direction: str, width: int) -> Tensor:
        is_among = direction in ("query_to_key", "key_to_query")
        return self.positive[:, :width] & is_among


def _masks(
    sides: _Sides,
    ids: Tensor | None,
    key_ids: Tensor | None,
    negative_ids: Tensor | None,
    same_id: str,
    negative_owner: Tensor | None,
    share_negatives: bool,
    exclude_self: bool,
) -> _Masks:
    num_pairs, num_candidates = sides.query.shape[0], sides.candidates.shape[0]
    device, num_keys = sides.query.device, sides.num_keys
    own = torch.eye(num_pairs, num_candidates, dtype=torch.bool, device=device)
    none = torch.zeros_like(own)
    same, owned = none.clone(), none.clone()
    if negative_owner is not None:
        rows = torch.arange(num_pairs, device=device)
        owned[:, num_keys:] = rows[:, None] == negative_owner[None, :]
    if ids is not None:
        same[:, :num_keys] = ids[:, None] == (ids if key_ids is None else key_ids)[None, :]
        if negative_ids is not None:
            same[:, num_keys:] = ids[:, None] == negative_ids[None, :]
    is_negative = torch.arange(num_candidates, device=device)[None, :] >= num_keys
    private = none if share_negatives else is_negative & ~owned
    itself = own if exclude_self else none
    own = none if exclude_self or key_ids is not None else own
    further = same & ~private & ~itself if same_id == "positive" else none
    return _Masks(own, own | further, same, owned, itself, private)


class _Block(NamedTuple):
    """Logits (N, m), which of them count, and which are positives; positives always count."""

    logits: Tensor
    kept: Tensor
    positive: Tensor


def _term(
    blocks: list[_Block], *, label_smoothing: float, debias: float | Tensor, scale: Tensor
) -> Tensor:
    """(N,) l_i of blocks put together."""
    logits = torch.cat([block.logits for block in blocks], 1)
    kept = torch.cat([block.kept for block in blocks], 1)
    positive = torch.cat([block.positive for block in blocks], 1) & kept
    log_total = logits.masked_fill(~kept, -torch.inf).logsumexp(1)
    if isinstance(debias, Tensor) or debias:
        is_negative = kept & ~positive
        count = is_negative.sum(1).to(logits.dtype)
        prior = torch.as_tensor(debias, dtype=logits.dtype, device=logits.device)
        of_positive = torch.where(positive, logits, 0).sum(1) / positive.sum(1)
        mean = torch.where(is_negative, (logits - scale).exp(), 0).sum(1) / count.clamp_min(1)
        mean = (mean - prior * (of_positive - scale).exp()) / (1 - prior)
        log_mean = torch.where(mean > 0, torch.where(mean > 0, mean, 1).log(), -torch.inf)
        log_negatives = count.log() + scale + torch.maximum(log_mean, -2 * scale)
        log_positives = logits.masked_fill(~positive, -torch.inf).logsumexp(1)
        log_total = torch.logaddexp(log_positives, log_negatives)
    positive_mean = torch.where(positive, logits, 0).sum(1) / positive.sum(1)
    kept_mean = torch.where(kept, logits, 0).sum(1) / kept.sum(1)
    return log_total - (1 - label_smoothing) * positive_mean - label_smoothing * kept_mean


def _statistics(block: _Block, similarity: Tensor, counted: Tensor) -> dict[str, Tensor]:
    """Of every row, (N,). counted: its own key, or all its positives, of which the best ranks."""
    best = block.logits.masked_fill(~counted, -torch.inf).amax(1, keepdim=True)
    rivals = block.logits.masked_fill(~block.kept | block.positive, -torch.inf)
    above, beaten_by = (rivals > best).sum(1), (rivals >= best).sum(1)
    return {
        "accuracy": (beaten_by == 0).to(block.logits.dtype),
        "mean_reciprocal_rank": 1 / (1 + above).to(block.logits.dtype),
        "positive_similarity": torch.where(counted, similarity, 0).sum(1) / counted.sum(1),
        "logsumexp": block.logits.masked_fill(~block.kept, -torch.inf).logsumexp(1),
    }
