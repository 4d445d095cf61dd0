"""Retrieval by the ratio margin: is a translation nearer than the neighborhoods of both sides?

Source of the score: Artetxe and Schwenk, "Margin-based Parallel Corpus Mining with Multilingual
Sentence Embeddings", ACL 2019, section 3.1 (ratio, k = 4).
Shapes: n translation pairs, C features, k neighbors.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from crossalign.evaluation.vectors.retrieval import Ranks, RetrievalScores
from crossalign.evaluation.vectors.tiles import Tile, TranslationPairs

NUM_NEIGHBORS = 4


class MarginScores(NamedTuple):
    """forward: sources look for targets; backward: targets look for sources. mean_margin: of the
    translation pairs; above 1 they are nearer than their neighborhoods."""

    forward_margin_accuracy: float
    backward_margin_accuracy: float
    mean_margin: float

    @property
    def accuracy(self) -> float:
        """Mean of both directions."""
        return (self.forward_margin_accuracy + self.backward_margin_accuracy) / 2


def margin_scores(
    source: Tensor,
    target: Tensor,
    *,
    ids: Tensor | None = None,
    num_neighbors: int = NUM_NEIGHBORS,
    chunk_size: int = 1024,
    device: torch.device | str | None = None,
) -> tuple[RetrievalScores, MarginScores]:
    """retrieval_scores, and top-1 accuracy and mean of the ratio margin, of the same pairs.

    margin(x, y) = cos(x, y) / (mean of cos(x, z) over the k targets z nearest to x / 2
                                + mean of cos(z, y) over the k sources z nearest to y / 2)

    Every candidate is scored, not only the nearest k. A tie is not a hit. A margin whose
    denominator is not positive is undefined: it is NaN, which is no hit, and so is the mean.

    Args:
        source, target, ids, chunk_size, device: as in retrieval_scores. Candidates of equal id
            are not among the neighbors either.
        num_neighbors: k; all candidates where there are fewer.

    Raises:
        TypeError, ValueError: as retrieval_scores; and num_neighbors below 1.

    Cost: twice that of retrieval_scores; holds 2 * n * k further numbers.
    """
    if num_neighbors < 1:
        raise ValueError(f"margin_scores: num_neighbors must be at least 1, got {num_neighbors}")
    pairs = TranslationPairs(
        "margin_scores", source, target, ids=ids, chunk_size=chunk_size, device=device
    )
    ranks = Ranks(pairs.own)
    nearest = _Nearest(len(source), num_neighbors, pairs.device)
    for tile in pairs.tiles():
        ranks.add(*tile)
        nearest.add(tile)
    forward_means, backward_means = nearest.means()
    own_margin = _margin(pairs.own, forward_means, backward_means)
    margin_ranks = Ranks(own_margin)
    for rows, columns, similarity in pairs.tiles():
        margin = _margin(similarity, forward_means[rows, None], backward_means[None, columns])
        margin_ranks.add(rows, columns, margin)
    by_margin = margin_ranks.scores()
    return ranks.scores(), MarginScores(
        by_margin.forward_accuracy, by_margin.backward_accuracy, own_margin.mean().item()
    )


def _margin(similarity: Tensor, forward_means: Tensor, backward_means: Tensor) -> Tensor:
    """float64, broadcast; -inf, of pairs that do not count, stays."""
    neighborhood = (forward_means + backward_means) / 2
    undefined = ~(neighborhood > 0) & (similarity != -torch.inf)
    return (similarity / neighborhood.abs()).masked_fill(undefined, torch.nan)


class _Nearest:
    """The k greatest similarities of every source, and of every target. (n, k) float32"""

    def __init__(self, num_pairs: int, num_neighbors: int, device: torch.device) -> None:
        shape = (num_pairs, num_neighbors)
        self._forward = torch.full(shape, -torch.inf, device=device)
        self._backward = torch.full(shape, -torch.inf, device=device)

    def add(self, tile: Tile) -> None:
        for kept, side, similarity in (
            (self._forward, tile.rows, tile.similarity),
            (self._backward, tile.columns, tile.similarity.T),
        ):
            num_kept = min(kept.shape[1], similarity.shape[1])
            candidates = torch.cat([kept[side], similarity.topk(num_kept).values], dim=1)
            kept[side] = candidates.topk(kept.shape[1]).values

    def means(self) -> tuple[Tensor, Tensor]:
        """Over those that exist: a vector always has its own translation. (n,) float64"""
        forward, backward = (
            torch.where(kept == -torch.inf, 0.0, kept.double()).sum(dim=1)
            / (kept != -torch.inf).sum(dim=1)
            for kept in (self._forward, self._backward)
        )
        return forward, backward
