"""Does a sentence find its translation? Exact nearest-neighbour retrieval from sentence vectors.

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

from crossalign.argument_checks import check_dims, check_floating, check_tensor


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


class RetrievalRow(NamedTuple):
    """The scores of one language pair at one layer."""

    layer: int
    source_language: str
    target_language: str
    scores: RetrievalScores


def retrieval_scores(source: Tensor, target: Tensor, *, chunk_size: int = 1024) -> RetrievalScores:
    """Top-1 accuracy and mean reciprocal rank of finding each translation by cosine similarity.

    rank[i] = number of candidates whose similarity to vector i is not strictly below that of its
    own translation, itself included. A hit is rank 1, so a tie is not a hit, and neither is NaN.

    Args:
        source: (n, C) floating-point; row i translates row i of target. Any device.
        target: (n, C) likewise, on the device of source.
        chunk_size: rows compared at a time; holds chunk_size x n similarities, changes no result.

    Raises:
        TypeError: source or target is not a tensor.
        ValueError: shapes or devices do not fit, or there is no pair.

    Similarities are formed in float64 and compared as float32: equal vectors tie, whatever the
    order in which the machine sums.
    """
    for name, vectors in (("source", source), ("target", target)):
        check_tensor("retrieval_scores", name, vectors)
        check_dims("retrieval_scores", name, vectors, "(n, C)")
        check_floating("retrieval_scores", name, vectors)
    if source.shape != target.shape or source.shape[0] == 0 or source.device != target.device:
        raise ValueError(
            "retrieval_scores: source and target must have the same shape (n, C) with n > 0 and "
            f"be on the same device, got {tuple(source.shape)} on {source.device} and "
            f"{tuple(target.shape)} on {target.device}"
        )
    if chunk_size < 1:
        raise ValueError(f"retrieval_scores: chunk_size must be at least 1, got {chunk_size}")
    source, target = _unit_rows(source), _unit_rows(target)
    forward = _ranks(source, target, chunk_size)
    backward = _ranks(target, source, chunk_size)
    return RetrievalScores(
        source.shape[0],
        *((ranks == 1).double().mean().item() for ranks in (forward, backward)),
        *(ranks.double().reciprocal().mean().item() for ranks in (forward, backward)),
    )


def retrieval_rows(vectors: Mapping[str, Tensor], layer: int) -> Iterator[RetrievalRow]:
    """The scores of every pair of languages; vectors: language -> (n, C), rows translate rows."""
    for source, target in itertools.combinations(vectors, 2):
        scores = retrieval_scores(vectors[source], vectors[target])
        yield RetrievalRow(layer, source, target, scores)


def same_language_neighbours(vectors: Mapping[str, Tensor], *, chunk_size: int = 1024) -> float:
    """Share of sentences whose nearest other sentence, of all languages, is in their own language.

    1 where every language keeps to itself. Vectors: language -> (n, C); of equally near sentences
    the first in the order of the languages counts.
    """
    rows = _unit_rows(torch.cat(list(vectors.values())))
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
    header = ("model", *RetrievalRow._fields[:-1], *RetrievalScores._fields)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        for model, rows in tables.items():
            writer.writerows((model, *row[:-1], *row.scores) for row in rows)


def _unit_rows(vectors: Tensor) -> Tensor:
    if vectors.device.type == "mps":  # has no float64
        vectors = vectors.cpu()
    return torch.nn.functional.normalize(vectors.detach().double(), dim=1)


def _ranks(queries: Tensor, keys: Tensor, chunk_size: int) -> Tensor:
    """Rank of key i among all keys as seen from query i. (n,) int64"""
    ranks = []
    for start in range(0, len(queries), chunk_size):
        similarity = (queries[start : start + chunk_size] @ keys.T).float()
        own = similarity.diagonal(offset=start).unsqueeze(1)
        ranks.append((~(similarity < own)).sum(dim=1))
    return torch.cat(ranks)
