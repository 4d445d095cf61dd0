"""Retrieval scores against a plain loop; ties, NaN, chunks; the projection of sentence vectors."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch

from crossalign.evaluation.vectors.margin import margin_scores
from crossalign.evaluation.vectors.projection import project_to_plane
from crossalign.evaluation.vectors.retrieval import (
    RetrievalScores,
    retrieval_rows,
    retrieval_scores,
    same_language_neighbors,
    write_retrieval_csv,
)
from crossalign.pooling.choices import Center
from tests.support.counted import LargestAllocation


def plain_scores(source: Any, target: Any) -> Any:
    """One pair at a time, float64 cosine similarities of torch."""
    results = []
    for queries, keys in ((source, target), (target, source)):
        hits = reciprocal = 0.0
        for i in range(len(queries)):
            similarity = torch.cosine_similarity(queries[i].double(), keys.double(), dim=1)
            rank = 1 + sum(bool(similarity[j] >= similarity[i]) for j in range(len(keys)) if j != i)
            hits += rank == 1
            reciprocal += 1 / rank
        results.append((hits / len(queries), reciprocal / len(queries)))
    (forward, forward_rank), (backward, backward_rank) = results
    return RetrievalScores(len(source), forward, backward, forward_rank, backward_rank)


@pytest.mark.parametrize("chunk_size", [1, 7, 37, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scores_equal_plain_loop_in_any_chunks(chunk_size: int, dtype: Any) -> None:
    source = torch.randn(37, 8).to(dtype)
    target = (source.float() + 1.1 * torch.randn(37, 8)).to(dtype)
    found = retrieval_scores(source, target, chunk_size=chunk_size)
    expected = plain_scores(source, target)
    assert 0 < found.forward_accuracy < 1
    assert found.forward_accuracy != found.backward_accuracy
    assert found == pytest.approx(expected, rel=1e-12)
    assert found.accuracy == pytest.approx((expected[1] + expected[2]) / 2)


def test_own_translation_is_found() -> None:
    vectors = torch.randn(50, 16)
    assert retrieval_scores(vectors, 3 * vectors) == (50, 1.0, 1.0, 1.0, 1.0)


@pytest.mark.parametrize("width", [1, 3, 64, 257])
@pytest.mark.parametrize("n", [2, 17, 1030])
def test_tie_is_not_a_hit(n: int, width: int) -> None:
    """Collapsed vectors must not look like perfect alignment."""
    vectors = torch.randn(1, width).expand(n, width)
    scores = retrieval_scores(vectors, vectors)
    assert list(scores) == [n, 0.0, 0.0, pytest.approx(1 / n), pytest.approx(1 / n)]


def test_tie_on_one_side_counts_on_that_side() -> None:
    source = torch.eye(3)
    target = torch.stack([source[0], source[1], source[1]])
    scores = retrieval_scores(source, target)
    # Source 1 sees two equal targets; all similarities of source 2 are zero. Target 2 is nearer to
    # source 1 than to its own.
    assert scores.forward_accuracy == pytest.approx(1 / 3)
    assert scores.forward_reciprocal_rank == pytest.approx((1 + 1 / 2 + 1 / 3) / 3)
    assert scores.backward_accuracy == pytest.approx(2 / 3)


def test_repeated_sentences_tie_unless_ids_say_that_they_are_the_same() -> None:
    source = torch.eye(4)[[0, 1, 2, 2, 3]]
    ids = torch.tensor([0, 1, 7, 7, 9])
    tied = retrieval_scores(source, source)
    assert tied.forward_accuracy == 3 / 5
    assert tied.forward_reciprocal_rank == pytest.approx((3 + 2 / 2) / 5)
    for chunk_size in (1, 2, 3, 100):
        assert retrieval_scores(source, source, ids=ids, chunk_size=chunk_size) == (5, 1, 1, 1, 1)


def test_ids_excuse_only_what_means_the_same() -> None:
    source = torch.eye(3)
    target = source[[1, 0, 2]]  # the first two find each other's translation
    wrong = retrieval_scores(source, target, ids=torch.tensor([0, 1, 2]))
    assert (wrong.forward_accuracy, wrong.backward_accuracy) == (1 / 3, 1 / 3)
    excused = retrieval_scores(source, target, ids=torch.tensor([5, 5, 2], dtype=torch.int32))
    # Their own similarity is 0, and the third, the only candidate left, ties with it.
    assert excused.forward_accuracy == 1 / 3
    assert excused.forward_reciprocal_rank == pytest.approx((1 / 2 + 1 / 2 + 1) / 3)


def test_order_of_pairs_and_rotation_change_nothing() -> None:
    source = torch.randn(60, 9, dtype=torch.float64)
    target = source + torch.randn(60, 9)
    expected = retrieval_scores(source, target)
    order = torch.randperm(60)
    assert retrieval_scores(source[order], target[order]) == pytest.approx(expected, rel=1e-12)
    rotation = torch.linalg.qr(torch.randn(9, 9, dtype=torch.float64))[0]
    turned = retrieval_scores(source @ rotation, 3 * target @ rotation)
    assert turned == pytest.approx(expected, rel=1e-12)
    back, forth = retrieval_scores(target, source), expected
    assert back.forward_accuracy == forth.backward_accuracy


def test_no_tensor_grows_with_the_square_of_the_pairs_nor_with_all_vectors() -> None:
    """So that memory-mapped vectors stay on disk."""
    n, width, chunk_size = 3000, 64, 128
    source, target = torch.randn(n, width), torch.randn(n, width)
    with LargestAllocation() as seen:
        retrieval_scores(source, target, ids=torch.arange(n), chunk_size=chunk_size)
        margin_scores(source, target, ids=torch.arange(n), chunk_size=chunk_size)
    assert seen.elements <= max(chunk_size * chunk_size, chunk_size * width, 4 * n) < n * width


def test_nan_is_no_hit() -> None:
    source = torch.randn(5, 4)
    source[2] = torch.nan
    scores = retrieval_scores(source, source)
    assert scores.forward_accuracy == 0.0  # every query meets the NaN among its candidates
    assert scores.forward_reciprocal_rank == pytest.approx((4 / 2 + 1 / 5) / 5)


def test_rows_name_every_pair_of_languages_once() -> None:
    shared = torch.randn(20, 6)
    vectors = {"en": shared, "de": 2 * shared, "ru": torch.randn(20, 6)}
    rows = list(retrieval_rows(vectors, layer=3))
    pairs = [(row.layer, row.source_language, row.target_language) for row in rows]
    assert pairs == [(3, "en", "de"), (3, "en", "ru"), (3, "de", "ru")]
    assert rows[0].scores.accuracy == 1.0
    assert rows[1].scores == retrieval_scores(shared, vectors["ru"])


@pytest.mark.parametrize("center", ["batch", "side"])
def test_centered_scores_are_of_vectors_without_a_mean(center: Center) -> None:
    shared = torch.randn(30, 6)
    noisy = shared + 0.3 * torch.randn(30, 6)
    vectors = {"en": shared + torch.tensor([40.0, 0, 0, 0, 0, 0]), "de": noisy}
    (row,) = retrieval_rows(vectors, 1, center)
    means = {name: sum(rows.double()) / 30 for name, rows in vectors.items()}
    if center == "batch":
        means = dict.fromkeys(means, (means["en"] + means["de"]) / 2)
    expected = retrieval_scores(*(vectors[name].double() - means[name] for name in vectors))
    assert row.centered == expected
    assert (row.centered.accuracy > row.scores.accuracy) == (center == "side")
    with pytest.raises(ValueError, match="center must be one of 'batch', 'side', got 'none'"):
        list(retrieval_rows(vectors, 1, "none"))


def test_csv_holds_what_was_measured(tmp_path: Path) -> None:
    rows = list(retrieval_rows({"en": torch.randn(9, 4), "de": torch.randn(9, 4)}, layer=1))
    write_retrieval_csv(tmp_path / "retrieval.csv", {"before": rows, "after": rows})
    with (tmp_path / "retrieval.csv").open(encoding="utf-8") as file:
        records = list(csv.DictReader(file))
    assert [record["model"] for record in records] == ["before", "after"]
    assert records[0]["source_language"] == "en"
    assert float(records[0]["forward_accuracy"]) == rows[0].scores.forward_accuracy
    assert int(records[1]["num_pairs"]) == 9
    found = float(records[0]["centered_forward_accuracy"])
    assert found == rows[0].centered.forward_accuracy


@pytest.mark.parametrize("chunk_size", [1, 5, 1024])
def test_neighbors_tell_separate_from_mixed_languages(chunk_size: int) -> None:
    meaning = torch.randn(12, 8)
    near = meaning + 0.01 * torch.randn(12, 8)
    apart = {"en": meaning + 100, "de": meaning - 100}
    mixed = {"en": meaning, "de": near}
    assert same_language_neighbors(apart, chunk_size=chunk_size) == 1.0
    assert same_language_neighbors(mixed, chunk_size=chunk_size) == 0.0
    half = {"en": torch.cat([meaning, near]), "de": meaning[:0]}
    assert same_language_neighbors(half, chunk_size=chunk_size) == 1.0


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        (torch.ones(3, 2), torch.ones(4, 2), r"same shape \(n, C\).*got \(3, 2\).*\(4, 2\)"),
        (torch.ones(0, 2), torch.ones(0, 2), "n > 0"),
        (torch.ones(3), torch.ones(3), r"source must have shape \(n, C\)"),
        (torch.ones(3, 2).long(), torch.ones(3, 2), "source must be float32"),
        (torch.ones(3, 2), torch.ones(3, 2, device="meta"), "same device"),
    ],
)
def test_unusable_vectors_are_refused(source: Any, target: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        retrieval_scores(source, target)


@pytest.mark.parametrize(
    ("ids", "error", "message"),
    [
        (torch.zeros(3), TypeError, "ids must be integers, got torch.float32"),
        (torch.zeros(3, dtype=torch.bool), TypeError, "ids must be integers, got torch.bool"),
        (torch.zeros(2, dtype=torch.long), ValueError, r"ids must have shape \(3,\).*got \(2,\)"),
        ([1, 2, 3], TypeError, r"ids must be a torch\.Tensor, got list"),
    ],
)
def test_unusable_ids_are_refused(ids: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        retrieval_scores(torch.ones(3, 2), torch.ones(3, 2), ids=ids)


def test_list_is_refused() -> None:
    with pytest.raises(TypeError, match=r"target must be a torch\.Tensor, got list"):
        retrieval_scores(torch.ones(2, 2), [[1.0, 2.0]])  # type: ignore[arg-type]


def test_chunk_size_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="chunk_size must be at least 1, got 0"):
        retrieval_scores(torch.ones(2, 2), torch.ones(2, 2), chunk_size=0)


def test_projection_finds_the_plane_that_holds_the_points() -> None:
    flat = torch.randn(40, 2) * torch.tensor([5.0, 1.0])
    directions = torch.linalg.qr(torch.randn(7, 2))[0].T
    found = project_to_plane(flat @ directions + 3.0)
    assert sum(found.variance_shares) == pytest.approx(1.0)
    assert found.variance_shares[0] > found.variance_shares[1]
    distances, expected = (
        torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")
        for points in (found.points, flat)
    )
    torch.testing.assert_close(distances, expected, atol=1e-4, rtol=1e-4)


def test_projection_is_repeatable_and_centered() -> None:
    vectors = torch.randn(30, 5)
    one, two = project_to_plane(vectors), project_to_plane(vectors.clone())
    assert torch.equal(one.points, two.points)
    torch.testing.assert_close(one.points.mean(dim=0), torch.zeros(2), atol=1e-6, rtol=0)


def test_projection_of_equal_vectors_is_one_point() -> None:
    found = project_to_plane(torch.ones(4, 3))
    assert found.points.abs().max() == 0
    assert found.variance_shares == (0.0, 0.0)


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        (torch.ones(2, 5), "at least 3 rows"),
        (torch.ones(5, 1), "2 columns"),
        (torch.full((5, 5), torch.nan), "must be finite"),
        (torch.ones(5), r"must have shape \(n, C\)"),
    ],
)
def test_vectors_without_a_plane_are_refused(vectors: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        project_to_plane(vectors)
