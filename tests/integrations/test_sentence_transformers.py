"""Losses of sentence-transformers: ours against its own, values and gradients."""

from __future__ import annotations

import functools
import inspect
import itertools
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.support.hosts import load_drop_in
from tests.support.process_group import run_ranks
from tests.support.tiny_sentence_transformer import tiny_sentence_transformer, word_columns

ROWS, WIDTH = 7, 8
NAMES = (
    "CachedMultipleNegativesRankingLoss",
    "CachedMultipleNegativesSymmetricRankingLoss",
    "MultipleNegativesRankingLoss",
    "MultipleNegativesSymmetricRankingLoss",
)


def embeddings(columns: int, rows: slice = slice(None)) -> list[Tensor]:
    made = []
    for seed in range(columns):
        generator = torch.Generator().manual_seed(seed)
        column = torch.randn(ROWS, WIDTH, dtype=torch.float64, generator=generator)
        made.append((0.3 * column)[rows].requires_grad_())
    return made


def make(cls: Any, *arguments: Any, **options: Any) -> Any:
    with warnings.catch_warnings():  # one of them is deprecated
        warnings.simplefilter("ignore", DeprecationWarning)
        return cls(*arguments, **options)


def assert_equal_to_host(cls: Any, columns: int, **options: Any) -> None:
    """Of a loss that takes embeddings; a stand-in is the model."""
    given = embeddings(columns)
    host = make(cls.__mro__[1], nn.Identity(), **options)
    ours = make(cls, nn.Identity(), **options)
    expected = host.compute_loss_from_embeddings(given, None)
    value = ours.compute_loss_from_embeddings(given, None)
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=0)
    theirs = torch.autograd.grad(expected, given)
    torch.testing.assert_close(torch.autograd.grad(value, given), theirs, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("name", NAMES)
def test_only_the_import_changes(name: str) -> None:
    ours = getattr(load_drop_in("sentence_transformers"), name)
    host = ours.__mro__[1]
    assert host.__module__.startswith("sentence_transformers.") and host.__name__ == name
    assert inspect.signature(ours.__init__) == inspect.signature(host.__init__)


@pytest.mark.parametrize("columns", [2, 3, 5])
@pytest.mark.parametrize("similarity", ["cos_sim", "dot_score"])
def test_equals_the_host(columns: int, similarity: str) -> None:
    module = load_drop_in("sentence_transformers")
    from sentence_transformers import util

    options: dict[str, Any] = {"scale": 7.0, "similarity_fct": getattr(util, similarity)}
    assert_equal_to_host(module.MultipleNegativesRankingLoss, columns, **options)
    assert_equal_to_host(module.MultipleNegativesSymmetricRankingLoss, columns, **options)
    wrapped = {**options, "similarity_fct": functools.partial(options["similarity_fct"])}
    assert_equal_to_host(module.MultipleNegativesRankingLoss, columns, **wrapped)


def settings() -> Iterator[dict[str, Any]]:
    """Every choice of directions that the host accepts, in each partition, with each hardness."""
    others = ("doc_to_doc", "doc_to_query", "query_to_query")
    for count in range(4):
        for chosen in itertools.combinations(others, count):
            for mode in (None, "all_negatives", "in_batch_negatives", "hard_negatives"):
                made = {
                    "directions": (*chosen, "query_to_doc"),
                    "hardness_mode": mode,
                    "hardness_strength": 0.0 if mode is None else 3.0,
                }
                yield {**made, "partition_mode": "joint"}
                if set(chosen) <= {"doc_to_query"}:
                    yield {**made, "partition_mode": "per_direction"}


@pytest.mark.parametrize("columns", [2, 4])
def test_directions_partitions_and_hardness_equal_the_host(columns: int) -> None:
    ours = load_drop_in("sentence_transformers").MultipleNegativesRankingLoss
    tried = list(settings())
    for options in tried:
        assert_equal_to_host(ours, columns, **options)
    assert len(tried) == 40


@pytest.mark.parametrize("name", NAMES)
def test_another_similarity_is_refused_when_the_loss_is_made(name: str, tmp_path: Path) -> None:
    ours = getattr(load_drop_in("sentence_transformers"), name)
    from sentence_transformers import util

    with pytest.raises(ValueError, match=r"similarity_fct must be util.cos_sim or .* euclidean_s"):
        make(ours, tiny_sentence_transformer(tmp_path), similarity_fct=util.euclidean_sim)


@pytest.mark.parametrize("columns", [2, 3])
@pytest.mark.parametrize("name", NAMES[:2])
def test_cached_equals_the_host_with_dropout(name: str, columns: int, tmp_path: Path) -> None:
    """Through forward, with a factor that the caller multiplies by, and then without autograd."""
    ours = getattr(load_drop_in("sentence_transformers"), name)
    model = tiny_sentence_transformer(tmp_path).train()
    features = [model.preprocess(column) for column in word_columns(ROWS, columns)]
    found = []
    for cls in (ours, ours.__mro__[1]):
        loss = make(cls, model, scale=7.0, mini_batch_size=3)
        model.zero_grad()
        torch.manual_seed(5)
        value = loss([dict(feature) for feature in features], None)
        (3 * value).backward()
        gradients = [parameter.grad for parameter in model.parameters()]
        model.eval()
        with torch.no_grad():
            found.append((value.detach(), gradients, loss(features, None)))
        model.train()
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-6)
    assert found[0][0] > 1


OF_RANKS: list[dict[str, Any]] = [
    {},
    {
        "directions": ("query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc"),
        "hardness_mode": "in_batch_negatives",
        "hardness_strength": 2.0,
    },
]


def _losses_of_rank(rank: int) -> list[Any]:
    ours = load_drop_in("sentence_transformers").MultipleNegativesRankingLoss
    found = []
    for columns, options in itertools.product((2, 3), OF_RANKS):
        given = embeddings(columns, (slice(0, 4), slice(4, ROWS))[rank])
        loss = ours(nn.Identity(), scale=7.0, gather_across_devices=True, **options)
        value = loss.compute_loss_from_embeddings(given, None)
        found.append((value.detach(), torch.autograd.grad(value, given)))
    return found


def test_two_ranks_have_the_gradient_of_the_whole_batch() -> None:
    """Of 4 and 3 rows: the host's labels take ranks to be of one size."""
    host = load_drop_in("sentence_transformers").MultipleNegativesRankingLoss.__mro__[1]
    ranks = run_ranks(_losses_of_rank, 2, timeout_s=200)
    for index, (columns, options) in enumerate(itertools.product((2, 3), OF_RANKS)):
        given = embeddings(columns)
        whole = host(nn.Identity(), scale=7.0, **options)
        expected = whole.compute_loss_from_embeddings(given, None)
        theirs = torch.autograd.grad(expected, given)
        mean = sum(found[index][0] for found in ranks) / 2
        torch.testing.assert_close(mean, expected.detach(), rtol=1e-12, atol=0)
        for column in range(columns):
            rows = torch.cat([found[index][1][column] for found in ranks]) / 2
            torch.testing.assert_close(rows, theirs[column], rtol=1e-10, atol=1e-13)
