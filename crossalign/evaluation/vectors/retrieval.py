"""Does a sentence find its translation? Exact nearest-neighbor retrieval from sentence vectors.

Shapes: n translation pairs, C features. Nothing of size n x n is held.
"""

from __future__ import annotations

import csv
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from crossalign.argument_checks import check_option
from crossalign.evaluation.vectors.tiles import TranslationPairs, computing_device, unit_rows
from crossalign.pooling.choices import Center


class RetrievalScores(NamedTuple):
    """Shares of 1. forward: sources look for targets; backward: targets look for sources."""

    num_pairs: int
    forward_accuracy: float
    backward_accuracy: float
    forward_reciprocal_rank: float
    backward_reciprocal_rank: float

    @property
    def accuracy(self) -> float:
        """Mean of both directions."""
        return (self.forward_accuracy + self.backward_accuracy) / 2

    @property
    def reciprocal_rank(self) -> float:
        """Mean of both directions."""
        return (self.forward_reciprocal_rank + self.backward_reciprocal_rank) / 2


class RetrievalRow(NamedTuple):
    """The scores of one language pair at one layer, of its vectors and of the centered ones."""

    layer: int
    source_language: str
    target_language: str
    scores: RetrievalScores
    centered: RetrievalScores


class Ranks:
    """rank[i] = number of candidates whose score is not strictly below that of i's own translation,
    itself included; forward: sources rank targets, backward: targets rank sources. (n,) int64."""

    def __init__(self, own: Tensor) -> None:
        self._own = own
        self.forward = torch.zeros(len(own), dtype=torch.int64, device=own.device)
        self.backward = torch.zeros_like(self.forward)

    def add(self, rows: slice, columns: slice, scores: Tensor) -> None:
        """Counts a tile of scores; each tile must be added once. NaN is never strictly below."""
        own = self._own
        self.forward[rows] += (~(scores < own[rows, None])).sum(dim=1)
        self.backward[columns] += (~(scores < own[None, columns])).sum(dim=0)

    def scores(self) -> RetrievalScores:
        both = (self.forward, self.backward)
        return RetrievalScores(
            len(self._own),
            *((ranks == 1).double().mean().item() for ranks in both),
            *(ranks.double().reciprocal().mean().item() for ranks in both),
        )


def retrieval_scores(
    source: Tensor,
    target: Tensor,
    *,
    ids: Tensor | None = None,
    chunk_size: int = 1024,
    device: torch.device | str | None = None,
) -> RetrievalScores:
    """Top-1 accuracy and mean reciprocal rank of finding each translation by cosine similarity.

    rank[i] = number of candidates whose similarity to vector i is not strictly below that of its
    own translation, itself included. A hit is rank 1, so a tie is not a hit, and neither is NaN.

    Args:
        source: (n, C) floating-point, memory-mapped or not; row i translates row i of target.
        target: (n, C) likewise, on the device of source.
        ids: (n,) integers; pairs of equal id mean the same and are no candidates for one another,
            so a repeated sentence is neither a hit nor a miss. None: it ties, which is a miss.
        chunk_size: rows and columns compared at a time; changes no result.
        device: where to compute; None: where the vectors are.

    Raises:
        TypeError: source, target or ids is not a tensor of its kind.
        ValueError: shapes or devices do not fit, or there is no pair.

    Cost: one product of n x n x C in float64; holds O(chunk_size * (chunk_size + C) + n) numbers.
    Similarities are compared as float32: equal vectors tie, in whatever order the machine sums.
    """
    pairs = TranslationPairs(
        "retrieval_scores", source, target, ids=ids, chunk_size=chunk_size, device=device
    )
    ranks = Ranks(pairs.own)
    for tile in pairs.tiles():
        ranks.add(*tile)
    return ranks.scores()


def retrieval_rows(
    vectors: Mapping[str, Tensor], layer: int, center: Center = "side"
) -> Iterator[RetrievalRow]:
    """The scores of every pair of languages.

    vectors: language -> (n, C), rows translate rows; not of unit length where they are to be
    centered as in training. center: as in centered_vectors.
    """
    centered = centered_vectors(vectors, center)
    for source, target in itertools.combinations(vectors, 2):
        yield RetrievalRow(
            *(layer, source, target),
            retrieval_scores(vectors[source], vectors[target]),
            retrieval_scores(centered[source], centered[target]),
        )


def centered_vectors(vectors: Mapping[str, Tensor], center: Center) -> dict[str, Tensor]:
    """float64, less the mean of all languages' vectors ("batch") or of each language's ("side")."""
    check_option("centered_vectors", "center", center, ("batch", "side"))
    doubles = {language: rows.double() for language, rows in vectors.items()}
    if center == "side":
        return {language: rows - rows.mean(dim=0) for language, rows in doubles.items()}
    mean = torch.cat(list(doubles.values())).mean(dim=0)
    return {language: rows - mean for language, rows in doubles.items()}


def same_language_neighbors(vectors: Mapping[str, Tensor], *, chunk_size: int = 1024) -> float:
    """Share of sentences whose nearest other sentence, of all languages, is in their own language.

    1 where every language keeps to itself. Vectors: language -> (n, C); of equally near sentences
    the first in the order of the languages counts.
    """
    rows = torch.cat(list(vectors.values()))
    rows = unit_rows(rows, computing_device(rows, None))
    language = torch.repeat_interleave(
        torch.tensor([len(part) for part in vectors.values()], device=rows.device)
    )
    same = 0
    for start in range(0, len(rows), chunk_size):
        similarity = (rows[start : start + chunk_size] @ rows.T).float()
        own = torch.arange(len(similarity), device=rows.device)
        similarity[own, own + start] = -torch.inf
        nearest = language[similarity.argmax(dim=1)]
        same += int((nearest == language[start : start + chunk_size]).sum())
    return same / len(rows)


def write_retrieval_csv(path: Path, tables: Mapping[str, Sequence[RetrievalRow]]) -> None:
    """One line per model, layer and language pair; tables: name of the model -> its rows."""
    names = RetrievalScores._fields
    header = ("model", *RetrievalRow._fields[:-2], *names, *centered_names())
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        for model, rows in tables.items():
            writer.writerows((model, *row[:-2], *row.scores, *row.centered[1:]) for row in rows)


def centered_names() -> tuple[str, ...]:
    """Columns of the scores of centered vectors; num_pairs is that of the plain ones."""
    return tuple(f"centered_{name}" for name in RetrievalScores._fields[1:])
