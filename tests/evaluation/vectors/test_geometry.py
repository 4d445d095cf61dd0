"""Measures of geometry against dense float64 arithmetic; invariances, chunks, bounds, errors."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch

from crossalign.evaluation.vectors.geometry import (
    alignment,
    center_distance,
    language_identification,
    spread,
    uniformity,
)
from tests.support.counted import LargestAllocation

UNEVEN = torch.tensor([4.0, 1.0, 0.5, 0.3, 2.0, 0.1])


def cloud(n: int = 53) -> torch.Tensor:
    """Neither even nor centered."""
    return torch.randn(n, 6) * UNEVEN + torch.tensor([1.0, -0.5, 0, 0, 0, 0.2])


def unit(vectors: torch.Tensor) -> np.ndarray:
    rows = vectors.double().numpy()
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def rotation() -> torch.Tensor:
    return torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64))[0]


@pytest.mark.parametrize("chunk_size", [1, 10, 1000])
def test_alignment_is_the_mean_squared_distance(chunk_size: int) -> None:
    source, target = cloud(), cloud()
    expected = np.mean(np.sum((unit(source) - unit(target)) ** 2, axis=1))
    found = alignment(source, target, chunk_size=chunk_size)
    assert found == pytest.approx(expected, rel=1e-12)
    assert alignment(source, 7 * source) == pytest.approx(0.0, abs=1e-15)
    assert alignment(source, -source) == pytest.approx(4.0)


@pytest.mark.parametrize("chunk_size", [1, 10, 1000])
def test_uniformity_is_its_formula(chunk_size: int) -> None:
    rows = unit(cloud())
    pairs = list(itertools.combinations(rows, 2))
    expected = math.log(sum(math.exp(-2 * np.sum((u - v) ** 2)) for u, v in pairs) / len(pairs))
    found = uniformity(torch.from_numpy(rows), chunk_size=chunk_size)
    assert found == pytest.approx(expected, rel=1e-12)


def test_uniformity_is_zero_for_one_point_and_least_for_opposites() -> None:
    assert uniformity(torch.ones(5, 3)) == pytest.approx(0.0, abs=1e-12)
    assert uniformity(torch.tensor([[1.0, 0], [-1.0, 0]])) == pytest.approx(-8.0)


def test_uniformity_of_drawn_rows_is_unbiased_before_the_logarithm() -> None:
    vectors = cloud(40)
    whole = math.exp(uniformity(vectors, max_rows=None))
    drawn = [math.exp(uniformity(vectors, max_rows=12, seed=seed)) for seed in range(300)]
    error = np.std(drawn) / math.sqrt(len(drawn))
    assert len(set(drawn)) == len(drawn)
    assert abs(np.mean(drawn) - whole) < 4 * error
    assert error < 0.05 * whole
    assert uniformity(vectors, max_rows=12, seed=3) == uniformity(vectors, max_rows=12, seed=3)
    assert uniformity(vectors, max_rows=40) == uniformity(vectors, max_rows=None)


def iso_score_in_steps(rows: np.ndarray) -> float:
    """As published: principal axes, variances scaled to norm sqrt(n), distance to all ones."""
    width = rows.shape[1]
    centered = rows - rows.mean(axis=0)
    _, _, axes = np.linalg.svd(centered, full_matrices=False)
    variances = np.var(centered @ axes.T, axis=0, ddof=1)
    scaled = math.sqrt(width) * variances / np.linalg.norm(variances)
    defect = np.linalg.norm(scaled - 1) / math.sqrt(2 * (width - math.sqrt(width)))
    used = (width - defect**2 * (width - math.sqrt(width))) ** 2 / width**2
    return (width * used - 1) / (width - 1)


@pytest.mark.parametrize("chunk_size", [1, 10, 1000])
def test_spread_equals_dense_arithmetic(chunk_size: int) -> None:
    vectors = cloud()
    rows = unit(vectors)
    found = spread(vectors, chunk_size=chunk_size)
    cosines = rows @ rows.T
    expected = (cosines.sum() - np.trace(cosines)) / (53 * 52)
    assert found.mean_cosine == pytest.approx(expected, rel=1e-12)
    np.testing.assert_allclose(found.mean.numpy(), rows.mean(axis=0), rtol=1e-12)
    assert found.iso_score == pytest.approx(iso_score_in_steps(rows), rel=1e-10)
    assert 0.1 < found.iso_score < 0.6


def test_spread_at_its_ends() -> None:
    even = torch.cat([torch.eye(6), -torch.eye(6)])
    assert spread(even).iso_score == pytest.approx(1.0)
    assert spread(even).mean_cosine == pytest.approx(-1 / 11)
    line = torch.tensor([[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0]])
    assert spread(line).iso_score == pytest.approx(0.0)
    point = torch.tensor([0.1, 0.7, -0.4]).expand(1000, 3)
    assert spread(point).iso_score == 0.0
    assert spread(point).mean_cosine == pytest.approx(1.0)
    assert spread(torch.zeros(4, 3)).mean_cosine == 0.0


def test_distance_of_centers() -> None:
    one, other = cloud(), cloud(20)
    expected = np.linalg.norm(unit(one).mean(axis=0) - unit(other).mean(axis=0))
    assert center_distance(spread(one), spread(other)) == pytest.approx(expected, rel=1e-12)


def identified_in_steps(vectors: dict[str, torch.Tensor], seed: int) -> dict[str, float]:
    num_lines = len(next(iter(vectors.values())))
    order = torch.randperm(num_lines, generator=torch.Generator().manual_seed(seed))
    half = (order % 2).numpy()
    rows = {language: unit(part) for language, part in vectors.items()}
    shares = {}
    for language, part in rows.items():
        hits = 0
        for line in range(num_lines):
            distances = {
                code: np.linalg.norm(part[line] - other[half != half[line]].mean(axis=0))
                for code, other in rows.items()
            }
            own = distances.pop(language)
            hits += own < min(distances.values())
        shares[language] = hits / num_lines
    return shares


@pytest.mark.parametrize("chunk_size", [1, 10, 1000])
def test_language_identification_equals_plain_centroids(chunk_size: int) -> None:
    vectors = {"en": cloud(), "de": cloud() + 0.4, "ru": cloud() - 0.4 * UNEVEN}
    found = language_identification(vectors, seed=5, chunk_size=chunk_size)
    assert found == identified_in_steps(vectors, 5)
    assert 0.4 < found["ru"] < 1


def test_languages_apart_are_told_and_languages_alike_are_not() -> None:
    meaning = torch.randn(4000, 6)
    offset = torch.tensor([0, 0, 0, 0, 0, 50.0])
    assert language_identification({"en": meaning + offset, "de": meaning - offset}) == {
        "en": 1.0,
        "de": 1.0,
    }
    alike = language_identification({"en": torch.randn(4000, 6), "de": torch.randn(4000, 6)})
    assert sum(alike.values()) / 2 == pytest.approx(
        0.5, abs=0.03
    )  # held out: no better than chance
    copies = language_identification({"en": meaning, "de": meaning.clone()})
    assert copies == {"en": 0.0, "de": 0.0}  # ties


def test_rotation_and_scale_change_nothing() -> None:
    vectors = {code: cloud().double() for code in ("en", "de")}
    turn = rotation()
    turned = {code: 3 * rows @ turn for code, rows in vectors.items()}
    pairs = list(zip(vectors.values(), turned.values(), strict=True))
    for one, other in pairs:
        assert uniformity(other) == pytest.approx(uniformity(one), rel=1e-12)
        assert spread(other)[1:] == pytest.approx(spread(one)[1:], rel=1e-9)
    assert alignment(*turned.values()) == pytest.approx(alignment(*vectors.values()), rel=1e-12)
    assert language_identification(turned) == language_identification(vectors)


def test_order_of_rows_changes_nothing_but_rounding() -> None:
    vectors, order = cloud(), torch.randperm(53)
    assert uniformity(vectors[order]) == pytest.approx(uniformity(vectors), rel=1e-12)
    assert spread(vectors[order])[1:] == pytest.approx(spread(vectors)[1:], rel=1e-12)


def test_no_tensor_is_as_large_as_all_vectors() -> None:
    """So that memory-mapped vectors stay on disk."""
    n, chunk_size = 4000, 32
    vectors = {code: torch.randn(n, 48) for code in ("en", "de")}
    calls = (
        lambda: alignment(*vectors.values(), chunk_size=chunk_size),
        lambda: uniformity(vectors["en"], max_rows=None, chunk_size=chunk_size),
        lambda: spread(vectors["en"], chunk_size=chunk_size),
        lambda: language_identification(vectors, chunk_size=chunk_size),
    )
    for call in calls:
        with LargestAllocation() as seen:
            call()
        assert 0 < seen.elements <= max(n, 48 * 48, chunk_size * 48)


def test_nan_shows() -> None:
    vectors = cloud()
    vectors[3, 2] = torch.nan
    assert math.isnan(uniformity(vectors))
    assert math.isnan(alignment(vectors, cloud()))
    assert math.isnan(spread(vectors).mean_cosine) and math.isnan(spread(vectors).iso_score)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: alignment(torch.ones(3, 2), torch.ones(4, 2)), r"same shape, got \(3, 2\) and"),
        (lambda: alignment(torch.ones(0, 2), torch.ones(0, 2)), "source must have at least 1 row,"),
        (lambda: alignment(torch.ones(2), torch.ones(2)), r"source must have shape \(n, C\)"),
        (lambda: uniformity(torch.ones(1, 2)), "vectors must have at least 2 rows, got 1"),
        (lambda: uniformity(torch.ones(3, 2), max_rows=1), "max_rows must be at least 2 or None"),
        (lambda: uniformity(torch.ones(3, 2), chunk_size=0), "chunk_size must be at least 1"),
        (lambda: spread(torch.ones(1, 2)), "spread: vectors must have at least 2 rows"),
        (lambda: spread(torch.ones(3, 1)), "at least 2 columns, got 1"),
        (lambda: language_identification({"en": torch.ones(3, 2)}), "two languages or more"),
        (lambda: language_identification({}), "two languages or more"),
        (
            lambda: language_identification({"en": torch.ones(3, 2), "de": torch.ones(4, 2)}),
            r"of one shape, got .*'de': \(4, 2\)",
        ),
        (
            lambda: language_identification({"en": torch.ones(1, 2), "de": torch.ones(1, 2)}),
            "en must have at least 2 rows",
        ),
    ],
)
def test_unusable_vectors_are_refused(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
