"""GISTEmbedLoss and CachedGISTEmbedLoss against sentence-transformers' own."""

from __future__ import annotations

import inspect
import itertools
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from tests.support.hosts import load_drop_in
from tests.support.process_group import run_ranks
from tests.support.tiny_sentence_transformer import (
    load_sentence_transformer,
    save_tiny_bert,
    tiny_sentence_transformer,
    word_columns,
)

ROWS, WIDTH, GUIDE_WIDTH = 8, 5, 3
NAMES = ("GISTEmbedLoss", "CachedGISTEmbedLoss")


def columns_of(count: int, width: int, seed: int, rows: slice = slice(None)) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (ROWS, width)
    made = [torch.randn(shape, dtype=torch.float64, generator=generator) for _ in range(count)]
    return [column[rows] for column in made]


def guides_of(count: int, rows: slice = slice(None)) -> list[Tensor]:
    """Row 2 finds its key no better than its own query: the pair is the same text twice."""
    made = columns_of(count, GUIDE_WIDTH, 7)
    made[1] = made[0] + made[1]
    made[1][2] = made[0][2]
    return [column[rows] for column in made]


def settings() -> Iterator[dict[str, Any]]:
    for anchors, positives in itertools.product((True, False), repeat=2):
        for kind, margin in (("absolute", 0.0), ("absolute", 0.2), ("relative", 0.3)):
            yield {
                **{"contrast_anchors": anchors, "contrast_positives": positives},
                **{"margin_strategy": kind, "margin": margin, "temperature": 0.2},
            }
    yield {"margin": -0.4, "temperature": 0.2}  # rows become candidates of themselves


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    load_drop_in("sentence_transformers")
    return tiny_sentence_transformer(tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize("name", NAMES)
def test_only_the_import_changes(name: str) -> None:
    ours = getattr(load_drop_in("sentence_transformers"), name)
    host = ours.__mro__[1]
    assert host.__module__.startswith("sentence_transformers.") and host.__name__ == name
    assert inspect.signature(ours.__init__) == inspect.signature(host.__init__)


@pytest.mark.parametrize("count", [2, 3, 4])
def test_every_setting_equals_the_host(count: int, model: Any) -> None:
    """Of embeddings, which the cached form has between its two passes."""
    ours = load_drop_in("sentence_transformers").CachedGISTEmbedLoss
    guides = [[guide[:5], guide[5:]] for guide in guides_of(count)]
    for options in settings():
        found = []
        for cls in (ours, ours.__mro__[1]):
            given = [column.requires_grad_() for column in columns_of(count, WIDTH, 3)]
            reps = [[column[:5], column[5:]] for column in given]
            loss = cls(model, model, mini_batch_size=5, **options).calculate_loss(reps, guides)
            found.append((loss.detach(), torch.autograd.grad(loss, given)))
        torch.testing.assert_close(found[0], found[1], rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("is_same_tokenizer", [True, False])
def test_through_the_models_equals_the_host(
    name: str, count: int, is_same_tokenizer: bool, model: Any, tmp_path: Path
) -> None:
    """With a guide of its own, whose shorter texts make the host cut sentences again; dropout."""
    ours = getattr(load_drop_in("sentence_transformers"), name)
    guide = tiny_sentence_transformer(tmp_path, seed=9).eval()
    guide.max_seq_length = 32 if is_same_tokenizer else 5
    features = [model.preprocess(column) for column in word_columns(ROWS, count)]
    found = []
    for cls in (ours, ours.__mro__[1]):
        loss = cls(model, guide, temperature=0.1, margin=0.02)
        assert loss.must_retokenize is not is_same_tokenizer
        loss.train()
        guide.eval()
        model.zero_grad()
        torch.manual_seed(5)
        value = loss([dict(feature) for feature in features], None)
        (3 * value).backward()
        gradients = [parameter.grad for parameter in model.parameters()]
        assert all(parameter.grad is None for parameter in guide.parameters())
        loss.eval()
        with torch.no_grad():
            found.append((value.detach(), gradients, loss(features, None)))
    torch.testing.assert_close(found[0], found[1], rtol=2e-4, atol=2e-6)
    assert found[0][0] > 0.5


def _losses_of_rank(rank: int, directory: str) -> list[Any]:
    warnings.simplefilter("ignore", FutureWarning)  # of the gather that the host uses
    ours = load_drop_in("sentence_transformers").CachedGISTEmbedLoss
    model = load_sentence_transformer(directory)
    rows = slice(4 * rank, 4 * rank + 4)
    found = []
    for count, cls in itertools.product((2, 3), (ours, ours.__mro__[1])):
        given = [column.requires_grad_() for column in columns_of(count, WIDTH, 3, rows)]
        guides = [[each] for each in guides_of(count, rows)]
        loss = cls(model, model, 0.2, margin=0.05, gather_across_devices=True)
        value = loss.calculate_loss([[each] for each in given], guides)
        gradients = torch.autograd.grad(value, given)
        total = value.detach().clone()
        dist.all_reduce(total)
        found.append((total / 2, gradients))
    return found


def test_two_ranks_equal_the_host(tmp_path: Path) -> None:
    load_drop_in("sentence_transformers")
    for found in run_ranks(_losses_of_rank, 2, save_tiny_bert(tmp_path), timeout_s=200):
        torch.testing.assert_close(found[0], found[1], rtol=1e-8, atol=1e-11)
        torch.testing.assert_close(found[2], found[3], rtol=1e-8, atol=1e-11)


def test_four_columns_are_refused_as_by_the_host(model: Any) -> None:
    loss = load_drop_in("sentence_transformers").GISTEmbedLoss(model, model)
    features = [model.preprocess(column) for column in word_columns(ROWS, 4)]
    with pytest.raises(ValueError, match="Expected 2 or 3 embeddings, got 4"):
        loss(features)
