"""One walk over the features for all prefixes: the same numbers as a pass for each."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from crossalign import ContrastiveLoss, MatryoshkaLoss, fused_contrastive_loss
from crossalign.contrastive import matryoshka, prefix_walk
from crossalign.contrastive.chunked import chunk, exponentials, torch_logits
from tests.support.counted import LargestAllocation, multiply_adds

N, H, D, DIMS, WEIGHTS = 21, 6, 12, (12, 3, 7, 1), (1.0, 0.5, 2.0, 0.25)


@pytest.fixture
def several_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 8 rows, the last not whole, and tiles of some columns."""
    monkeypatch.setattr(prefix_walk, "PASSES_IN_FEATURES", 0)
    monkeypatch.setattr(torch_logits, "CPU_CHUNK_LOGITS", 1)
    monkeypatch.setattr(chunk, "KEPT_BYTES", 0)
    monkeypatch.setattr(torch_logits, "MIN_ROWS", 8)
    monkeypatch.setattr(exponentials, "TILE_LOGITS", 8 * 5)


def sides(dtype: torch.dtype = torch.float64) -> list[Tensor]:
    made = [torch.randn(rows, D, dtype=dtype) * (0.3 + torch.rand(rows, 1)) for rows in (N, N, H)]
    made[1] += 0.7 * made[0]
    return [side.requires_grad_() for side in made]


def step(loss: MatryoshkaLoss[Any], embeddings: list[Tensor], **options: Any) -> list[Tensor]:
    wanted = [x for x in embeddings if x.requires_grad]
    value = loss(*embeddings, **options)
    return [value.detach(), *torch.autograd.grad(2 * value, wanted)]


def without_walk(monkeypatch: pytest.MonkeyPatch, *arguments: Any, **options: Any) -> list[Tensor]:
    with monkeypatch.context() as patches:
        patches.setattr(matryoshka, "prefix_walk_takes", lambda *given: False)
        return step(*arguments, **options)


@pytest.mark.usefixtures("several_chunks")
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("num_sides", [2, 3])
@pytest.mark.parametrize("locked", [None, 0, 1])
def test_equals_a_pass_for_each_prefix(
    locked: int | None, num_sides: int, reduction: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    embeddings = sides()[:num_sides]
    if locked is not None:
        embeddings[locked].requires_grad_(False)
    options: dict[str, Any] = {"temperature": 0.1, "reduction": reduction}
    loss = MatryoshkaLoss(fused_contrastive_loss, DIMS, WEIGHTS)
    ours = step(loss, embeddings, **options)
    passes = without_walk(monkeypatch, loss, embeddings, **options)
    torch.testing.assert_close(ours, passes, rtol=1e-10, atol=1e-13)
    module = MatryoshkaLoss(ContrastiveLoss(0.1, reduction=reduction), DIMS, WEIGHTS)
    assert all(map(torch.equal, step(module, embeddings), ours))


@pytest.mark.usefixtures("several_chunks")
def test_no_feature_is_multiplied_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    embeddings, loss = sides(torch.float32), MatryoshkaLoss(fused_contrastive_loss, DIMS, WEIGHTS)
    assert multiply_adds(lambda: step(loss, embeddings)) == 3 * N * (N + H) * D


@pytest.mark.usefixtures("several_chunks")
def test_terms_and_gradients_near_zero_keep_their_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a pair is far closer than all others, the rest is nothing beside its exponential."""
    rows = torch.eye(4, 12) * 3 + torch.randn(4, 12) * 0.01
    embeddings = [rows.clone().requires_grad_(), rows.clone().requires_grad_()]
    loss = MatryoshkaLoss(ContrastiveLoss(0.026), (12, 6))
    ours = step(loss, embeddings)
    doubles = [x.detach().double().requires_grad_() for x in embeddings]
    exact = without_walk(monkeypatch, loss, doubles)
    assert 0 < ours[0] < 1e-14
    for mine, other in zip(ours, exact, strict=True):
        torch.testing.assert_close(mine.double(), other, rtol=1e-3, atol=0)


@pytest.mark.usefixtures("several_chunks")
def test_rows_below_the_floor_of_the_norm_are_not_projected(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    embeddings = sides()
    with torch.no_grad():
        embeddings[0][0] = 0
        embeddings[1][3, :7] = 0
    loss = MatryoshkaLoss(fused_contrastive_loss, DIMS, WEIGHTS)
    ours, passes = step(loss, embeddings), without_walk(monkeypatch, loss, embeddings)
    assert all(x.isfinite().all() for x in ours)
    torch.testing.assert_close(ours, passes, rtol=1e-9, atol=1e-12)


@pytest.mark.usefixtures("several_chunks")
def test_a_second_derivative_is_refused() -> None:
    embeddings = sides()
    value = MatryoshkaLoss(fused_contrastive_loss, DIMS)(*embeddings)
    (gradient,) = torch.autograd.grad(value, embeddings[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="cannot be differentiated twice"):
        torch.autograd.grad(gradient.sum(), embeddings[:1])


@pytest.mark.usefixtures("several_chunks")
@pytest.mark.parametrize(
    "options",
    [
        {"symmetric": True},
        {"ids": torch.arange(N)},
        {"temperature": 0.01},
        {"temperature": torch.tensor(0.1)},
        {"normalize": False},
        {"label_smoothing": 0.1},
        {"reduction": "none"},
        {"return_stats": True},
    ],
    ids=lambda options: next(iter(options)),
)
def test_what_the_walk_lacks_takes_the_passes(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: Any) -> None:
        raise AssertionError("walked")

    monkeypatch.setattr(matryoshka, "prefix_walk_loss", refuse)
    MatryoshkaLoss(fused_contrastive_loss, DIMS)(*sides(), **options)
    learned = ContrastiveLoss(0.1, learn_temperature=True)
    hooked = ContrastiveLoss(0.1)
    hooked.register_forward_hook(lambda *given: None)
    for loss in (learned, hooked, lambda *given: fused_contrastive_loss(*given)):
        MatryoshkaLoss(loss, DIMS)(*sides())
    with torch.no_grad():
        MatryoshkaLoss(fused_contrastive_loss, DIMS)(*sides())


@pytest.mark.parametrize(("dims", "is_shorter"), [((256, 128, 64, 32), False), ((768, 384), True)])
def test_the_walk_is_taken_where_it_is_shorter(dims: tuple[int, ...], is_shorter: bool) -> None:
    query, key = (torch.randn(4, dims[0], requires_grad=True) for _ in range(2))
    arguments = matryoshka._contrastive_arguments(fused_contrastive_loss, [query, key], {})
    assert arguments is not None
    assert prefix_walk.prefix_walk_takes(arguments, dims) == is_shorter


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefix_walk, "PASSES_IN_FEATURES", 0)
    monkeypatch.setattr(torch_logits, "CPU_CHUNK_LOGITS", 2**14)
    monkeypatch.setattr(chunk, "KEPT_BYTES", 2**16)
    monkeypatch.setattr(exponentials, "TILE_LOGITS", 2**12)
    query, key = (torch.randn(1024, 8, requires_grad=True) for _ in range(2))
    arguments = matryoshka._contrastive_arguments(fused_contrastive_loss, [query, key], {})
    assert arguments is not None
    walk = prefix_walk._Walk(query.detach(), key.detach())
    walk.add_prefixes((8, 4), (1.0, 1.0), 20.0, 1.0)
    with LargestAllocation() as largest:
        walk.run()
    # 64 rows at least, of three rooms.
    assert 0 < largest.elements <= 3 * 64 * 1024
