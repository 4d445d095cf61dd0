"""MatryoshkaLoss against the reference on prefixes that are cut and normalized by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from crossalign import ContrastiveLoss, GradientCache, MatryoshkaLoss, fused_sigmoid_loss, reference
from crossalign.contrastive.loss import fused_contrastive_loss

DIMS, WEIGHTS = (12, 5, 1), (1.0, 0.5, 2.0)


def sides(negatives: bool = True) -> list[Tensor]:
    made = [torch.randn(rows, 12, dtype=torch.float64) for rows in (7, 7, 4)]
    return [side.requires_grad_() for side in made[: 3 if negatives else 2]]


def dense(*embeddings: Tensor, temperature: float, weights: tuple[float, ...] = WEIGHTS) -> Tensor:
    """Plain cross-entropy over unit prefixes."""
    total = torch.zeros((), dtype=torch.float64)
    for dim, weight in zip(DIMS, weights, strict=True):
        query, *candidates = (F.normalize(side[:, :dim], dim=1) for side in embeddings)
        logits = query @ torch.cat(candidates).T / temperature
        total = total + weight * F.cross_entropy(logits, torch.arange(len(query)))
    return total


@pytest.mark.parametrize("negatives", [False, True])
def test_equals_cross_entropy_over_unit_prefixes(negatives: bool) -> None:
    embeddings = sides(negatives)
    expected = dense(*embeddings, temperature=0.3)
    theirs = torch.autograd.grad(expected, embeddings)
    loss = MatryoshkaLoss(ContrastiveLoss(0.3), DIMS, WEIGHTS)
    ours = loss(*embeddings)
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=0)
    for mine, other in zip(torch.autograd.grad(ours, embeddings), theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-11, atol=1e-14)


def test_weights_are_one_unless_given() -> None:
    embeddings = sides()
    expected = dense(*embeddings, temperature=0.3, weights=(1.0, 1.0, 1.0))
    ours = MatryoshkaLoss(ContrastiveLoss(0.3), DIMS)(*embeddings)
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=0)


def test_options_reach_the_loss_and_statistics_are_the_longest_prefix() -> None:
    query, key, _ = sides()
    ids = torch.tensor([0, 1, 0, 2, 3, 4, 1])
    options: dict[str, Any] = {"temperature": 0.2, "ids": ids, "return_stats": True}
    ours, stats = MatryoshkaLoss(fused_contrastive_loss, (5, 12, 1))(query, key, **options)
    found = [fused_contrastive_loss(query[:, :d], key[:, :d], **options) for d in (5, 12, 1)]
    torch.testing.assert_close(ours, sum(value for value, _ in found))
    assert stats == found[1][1] and stats != found[0][1]


def test_goes_around_the_sigmoid_loss_and_into_the_cache() -> None:
    query, key, _ = sides()

    def loss(query: Tensor, key: Tensor) -> Tensor:
        return fused_sigmoid_loss(query, key, temperature=0.1, bias=-10.0)

    matryoshka = MatryoshkaLoss(loss, DIMS, WEIGHTS)
    expected = sum(
        weight * reference.sigmoid_loss(query[:, :dim], key[:, :dim], temperature=0.1, bias=-10.0)
        for dim, weight in zip(DIMS, WEIGHTS, strict=True)
    )
    encoder = torch.nn.Linear(12, 12, bias=False, dtype=torch.float64)
    torch.nn.init.eye_(encoder.weight)
    ours = GradientCache(encoder, matryoshka, 3)(query.detach(), key.detach())
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=0)
    ours.backward()
    (theirs,) = torch.autograd.grad(matryoshka(encoder(query), encoder(key)), encoder.weight)
    torch.testing.assert_close(encoder.weight.grad, theirs, rtol=1e-11, atol=1e-13)


def test_a_learned_temperature_is_the_modules_parameter() -> None:
    loss = MatryoshkaLoss(ContrastiveLoss(0.3, learn_temperature=True), DIMS, WEIGHTS)
    assert [name for name, _ in loss.named_parameters()] == ["loss.logit_scale"]
    loss(*sides()).backward()
    (logit_scale,) = loss.parameters()
    assert logit_scale.grad != 0


def test_bad_sizes_are_named() -> None:
    loss = ContrastiveLoss()
    for dims in ([], [0, 4], [4, 4]):
        with pytest.raises(ValueError, match=r"dims must be different sizes of at least 1, got \["):
            MatryoshkaLoss(loss, dims)
    with pytest.raises(TypeError, match="each of dims must be an integer, got float"):
        MatryoshkaLoss(loss, [2.0])  # type: ignore[list-item]
    with pytest.raises(TypeError, match="dims must be a list of numbers, got 4"):
        MatryoshkaLoss(loss, 4)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="each of weights must be a number, got str"):
        MatryoshkaLoss(loss, [2], ["1"])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="each of weights must be finite, got nan"):
        MatryoshkaLoss(loss, [2], [float("nan")])
    with pytest.raises(TypeError, match=r"loss must be a loss such as .*, got 0\.05"):
        MatryoshkaLoss(0.05, [2])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="weights must be one for each of the 2 dims, got 1"):
        MatryoshkaLoss(loss, [4, 2], [1.0])
    with pytest.raises(ValueError, match="dims must be at most the 12 features of query, got 13"):
        MatryoshkaLoss(loss, [13, 2])(*sides())
    query, key, _ = sides()
    with pytest.raises(TypeError, match=r"negatives must be a torch\.Tensor, got float"):
        MatryoshkaLoss(loss, [2])(query, key, 0.05)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="MatryoshkaLoss: query must be a dense tensor"):
        MatryoshkaLoss(loss, [2])(query.to_sparse(), key)
    with pytest.raises(ValueError, match=r"query must have shape \(N, D\), got \(12,\)"):
        MatryoshkaLoss(loss, [2])(query[0], key)


def test_sizes_and_weights_may_be_arrays() -> None:
    embeddings = sides()
    made = MatryoshkaLoss(ContrastiveLoss(0.3), np.array(DIMS), np.array(WEIGHTS, np.float32))  # type: ignore[arg-type]
    expected = MatryoshkaLoss(ContrastiveLoss(0.3), DIMS, WEIGHTS)(*embeddings)
    assert torch.equal(made(*embeddings), expected)
