"""The ratio margin against its formula, one pair at a time; ties, repeats, undefined margins."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from crossalign.evaluation.vectors.margin import margin_scores
from crossalign.evaluation.vectors.retrieval import retrieval_scores


def plain_margins(source: Any, target: Any, k: int, ids: Any = None) -> Any:
    """The matrix of margins by definition, in Python floats; None: a pair that does not count."""
    n = len(source)
    cosine = torch.nn.functional.cosine_similarity(
        source.double()[:, None], target.double()[None], dim=2
    ).tolist()
    counts = [[i == j or ids is None or ids[i] != ids[j] for j in range(n)] for i in range(n)]
    rows = [
        sorted((cosine[i][j] for j in range(n) if counts[i][j]), reverse=True)[:k] for i in range(n)
    ]
    columns = [
        sorted((cosine[i][j] for i in range(n) if counts[i][j]), reverse=True)[:k] for j in range(n)
    ]

    def margin(i: Any, j: Any) -> Any:
        if not counts[i][j]:
            return None
        means = sum(rows[i]) / len(rows[i]) / 2 + sum(columns[j]) / len(columns[j]) / 2
        return cosine[i][j] / means if means > 0 else math.nan

    return [[margin(i, j) for j in range(n)] for i in range(n)]


def plain_scores(margins: Any) -> Any:
    n = len(margins)
    forward = [
        all(margins[i][j] is None or margins[i][j] < margins[i][i] for j in range(n) if j != i)
        for i in range(n)
    ]
    backward = [
        all(margins[j][i] is None or margins[j][i] < margins[i][i] for j in range(n) if j != i)
        for i in range(n)
    ]
    return sum(forward) / n, sum(backward) / n, sum(margins[i][i] for i in range(n)) / n


def crowded(n: int = 41, width: int = 32) -> Any:
    """Pairs on one side of the sphere, with some targets that are near to everything."""
    source = torch.randn(n, width) + 0.7
    target = source + 1.5 * torch.randn(n, width)
    target[::6] = target[::6] * 0.35 + 0.7
    return source, target


@pytest.mark.parametrize("chunk_size", [1, 7, 41, 1000])
@pytest.mark.parametrize("k", [1, 4, 100])
@pytest.mark.parametrize("has_ids", [False, True])
def test_margins_equal_their_formula_in_any_chunks(chunk_size: int, k: int, has_ids: Any) -> None:
    source, target = crowded()
    ids = torch.arange(41) // 2 if has_ids else None
    retrieval, found = margin_scores(
        source, target, ids=ids, num_neighbors=k, chunk_size=chunk_size
    )
    expected = plain_scores(plain_margins(source, target, k, None if ids is None else ids.tolist()))
    assert found == pytest.approx(expected, rel=1e-6)
    assert found.accuracy == pytest.approx((expected[0] + expected[1]) / 2)
    assert retrieval == retrieval_scores(source, target, ids=ids)


def test_crowded_neighborhoods_count_against_a_candidate() -> None:
    """What the margin is for: a hub that is near to all is not the best of all."""
    retrieval, margin = margin_scores(*crowded())
    assert margin.forward_margin_accuracy > retrieval.forward_accuracy + 0.1


def test_chunks_change_no_bit() -> None:
    source, target = crowded(n=300)
    results = {margin_scores(source, target, chunk_size=size) for size in (300, 64, 7)}
    assert len(results) == 1


def test_copies_tie_and_so_miss_unless_they_mean_the_same() -> None:
    source = torch.eye(6)[[0, 1, 2, 2, 3]] + 0.1
    _, tied = margin_scores(source, source)
    assert tied[:2] == (3 / 5, 3 / 5)
    _, same = margin_scores(source, source, ids=torch.tensor([0, 1, 2, 2, 3]))
    assert same[:2] == (1.0, 1.0)


def test_collapsed_vectors_are_no_hits_and_have_margin_one() -> None:
    vectors = torch.ones(9, 4)
    assert list(margin_scores(vectors, vectors)[1]) == [0.0, 0.0, pytest.approx(1.0)]


def test_margin_without_a_positive_neighborhood_is_undefined() -> None:
    source = torch.tensor([[1.0, 0.0], [-1.0, 0.2]])
    _, margin = margin_scores(source, -source)
    assert margin[:2] == (0.0, 0.0)
    assert math.isnan(margin.mean_margin)


def test_order_of_pairs_changes_nothing() -> None:
    source, target = crowded()
    order = torch.randperm(41)
    expected = margin_scores(source, target)[1]
    assert margin_scores(source[order], target[order])[1] == pytest.approx(expected, rel=1e-12)


def test_no_neighbors_are_refused() -> None:
    with pytest.raises(ValueError, match="num_neighbors must be at least 1, got 0"):
        margin_scores(torch.ones(3, 2), torch.ones(3, 2), num_neighbors=0)
    with pytest.raises(ValueError, match="margin_scores: source and target must have the same"):
        margin_scores(torch.ones(3, 2), torch.ones(4, 2))
