"""NTXentLoss and SupConLoss against pytorch-metric-learning's own: labels, references, miners."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor

from crossalign.integrations import listed_pairs
from tests.support.hosts import load_drop_in

NAMES = ("NTXentLoss", "SupConLoss")
LABELS = {
    "two of each": [0, 1, 2, 3, 0, 1, 2, 3],
    "several, and one by itself": [5, 5, 5, 7, 7, 9, 5, -2],
    "all different": [0, 1, 2, 3, 4, 5, 6, 7],
    "all equal": [4] * 8,
}


def vectors(rows: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    made = torch.randn(rows, 6, dtype=torch.float64, generator=generator)
    return (0.4 * made).requires_grad_()


def assert_equal_to_host(name: str, given: list[Tensor], call: Any, **options: Any) -> None:
    """given: what gradients are taken of; call(loss): its value."""
    ours = getattr(load_drop_in("pytorch_metric_learning"), name)
    found = []
    for cls in (ours, ours.__mro__[1]):
        value = call(cls(**options))
        found.append((value.detach(), *torch.autograd.grad(value, given, allow_unused=True)))
    for mine, theirs in zip(*found, strict=True):
        if mine is None or theirs is None:  # a loss of zero reaches the references nowhere
            assert mine is None and theirs is None
        else:
            torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", NAMES)
def test_only_the_import_changes(name: str) -> None:
    ours = getattr(load_drop_in("pytorch_metric_learning"), name)
    host = ours.__mro__[1]
    assert host.__module__.startswith("pytorch_metric_learning.") and host.__name__ == name
    assert inspect.signature(ours) == inspect.signature(host)


@pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS)
@pytest.mark.parametrize("name", NAMES)
def test_labels(name: str, labels: list[int]) -> None:
    rows, given = vectors(8, 1), torch.tensor(labels)
    assert_equal_to_host(name, [rows], lambda loss: loss(rows, given), temperature=0.2)
    assert_equal_to_host(name, [rows], lambda loss: loss(rows, given))


@pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS)
@pytest.mark.parametrize("name", NAMES)
def test_reference_embeddings(name: str, labels: list[int]) -> None:
    rows, others, given = vectors(8, 1), vectors(5, 2), torch.tensor(labels)
    of_others = torch.tensor([5, 0, 4, 7, 7])
    assert_equal_to_host(
        name,
        [rows, others],
        lambda loss: loss(rows, given, ref_emb=others, ref_labels=of_others),
        temperature=0.3,
    )


@pytest.mark.parametrize("name", NAMES)
def test_two_views_through_the_hosts_wrapper(name: str) -> None:
    load_drop_in("pytorch_metric_learning")
    from pytorch_metric_learning.losses import SelfSupervisedLoss

    one, other = vectors(6, 1), vectors(6, 2)
    for symmetric in (True, False):
        assert_equal_to_host(
            name,
            [one, other],
            lambda loss, s=symmetric: SelfSupervisedLoss(loss, symmetric=s)(one, other),
        )


@pytest.mark.parametrize("name", NAMES)
def test_pairs_that_a_miner_lists(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pairs and triplets, some of them twice; in parts of few, as long lists are taken."""
    monkeypatch.setattr(listed_pairs, "_ELEMENTS", 18)
    rows, labels = vectors(8, 1), torch.tensor(LABELS["several, and one by itself"])
    anchors, positives = torch.tensor([0, 0, 1, 3, 3]), torch.tensor([1, 2, 6, 4, 4])
    others, negatives = torch.tensor([0, 0, 3, 5, 3]), torch.tensor([3, 4, 7, 1, 7])
    for listed in (
        (anchors, positives, others, negatives),
        (anchors, positives, torch.tensor([3, 5, 4, 0, 0])),
    ):
        assert_equal_to_host(name, [rows], lambda loss, pairs=listed: loss(rows, labels, pairs))
        assert_equal_to_host(
            name, [rows], lambda loss, pairs=listed: loss(rows, None, indices_tuple=pairs)
        )


@pytest.mark.parametrize("name", NAMES)
def test_the_hosts_memory_of_earlier_batches(name: str) -> None:
    """CrossBatchMemory hands over a queue as references and every pair as listed."""
    load_drop_in("pytorch_metric_learning")
    from pytorch_metric_learning.losses import CrossBatchMemory

    first, second = vectors(8, 5), vectors(8, 6)
    labels = torch.tensor(LABELS["several, and one by itself"])

    def over_two_batches(loss: Any) -> Tensor:
        memory = CrossBatchMemory(loss, embedding_size=6, memory_size=12)
        memory.embedding_memory = memory.embedding_memory.double()
        return memory(first, labels) + memory(second, labels.roll(3))

    assert_equal_to_host(name, [first, second], over_two_batches, temperature=0.2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_listed_products_of_half_precision_are_summed_in_float32(dtype: torch.dtype) -> None:
    query, other = (vectors(4, seed).detach().to(dtype) for seed in (1, 2))
    pairs = listed_pairs.ListedPairs(torch.tensor([0, 3, 3]), torch.tensor([1, 1, 2]))
    found = pairs.products(query, other)
    exact = (query.double() @ other.double().T)[pairs.rows, pairs.columns]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), exact, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_a_dot_product_and_a_regularizer_and_another_reducer(name: str) -> None:
    load_drop_in("pytorch_metric_learning")
    from pytorch_metric_learning import distances, reducers, regularizers

    rows, labels = vectors(8, 3), torch.tensor(LABELS["several, and one by itself"])
    others, of_others = vectors(5, 4), torch.tensor([5, 5, 9, 7, 0])
    assert_equal_to_host(
        name,
        [rows, others],
        lambda loss: loss(rows, labels, None, others, of_others),
        distance=distances.DotProductSimilarity(normalize_embeddings=False),
        reducer=reducers.SumReducer(),
        embedding_regularizer=regularizers.LpRegularizer(),
        temperature=0.5,
    )


def test_far_more_negatives_than_logits_reach() -> None:
    """exp(1 / 0.01) is beyond float32; the stand-in keys leave nothing of themselves behind."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(48, 6, generator=generator).requires_grad_()
    labels = torch.randint(0, 9, (48,), generator=generator)
    ours = load_drop_in("pytorch_metric_learning").NTXentLoss
    value = ours(temperature=0.01)(rows, labels)
    exact = rows.detach().double().requires_grad_()
    expected = ours.__mro__[1](temperature=0.01)(exact, labels)
    torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=0)
    gradient = torch.autograd.grad(value, rows)[0].double()
    torch.testing.assert_close(
        gradient, torch.autograd.grad(expected, exact)[0], rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize("name", NAMES)
def test_what_cannot_be_done_is_refused_when_the_loss_is_made(name: str) -> None:
    ours = getattr(load_drop_in("pytorch_metric_learning"), name)
    from pytorch_metric_learning import distances

    with pytest.raises(ValueError, match=rf"{name}: distance must be CosineSim.* got LpDistance"):
        ours(distance=distances.LpDistance())
    with pytest.raises(ValueError, match=rf"{name}: distance must have power=1, got power=2; use"):
        ours(distance=distances.CosineSimilarity(power=2))
    with pytest.raises(ValueError, match=rf"{name}: temperature must be above 0, got -1; use the"):
        ours(temperature=-1)
