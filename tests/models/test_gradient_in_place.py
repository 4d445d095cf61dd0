"""The embedding's gradient in place is the one that autograd forms, and touches no other row."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crossalign.models.gradient_in_place import RowGradients
from crossalign.models.next_token_loss import language_model_loss

ROWS, WIDTH = 11, 5


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    first = torch.randint(0, ROWS, (4, 6), generator=generator)
    second = torch.randint(0, ROWS, (3, 2), generator=generator)
    return first, second, torch.randn(4, 6, WIDTH, generator=generator, dtype=torch.float64)


def lookups(embedding: nn.Embedding, *, adds_to_grad: bool) -> Tensor:
    """Two passes through the embedding, the second of which ends in the head tied to it."""
    first, second, factors = inputs()
    looked_up = (embedding(first) * factors).sin().sum()
    hidden = embedding(second).cos() * embedding(second)
    labels = second.flip(0)
    head = language_model_loss(hidden, embedding.weight, labels, adds_to_grad=adds_to_grad)
    return looked_up + 3 * head


def gradient(padding: int | None, *, in_place: bool, earlier: Tensor | None = None) -> Tensor:
    torch.manual_seed(0)
    embedding = nn.Embedding(ROWS, WIDTH, padding_idx=padding, dtype=torch.float64)
    if earlier is not None:
        embedding.weight.grad = earlier.clone()
    if in_place:
        with RowGradients(embedding.weight):
            loss = lookups(embedding, adds_to_grad=True)
    else:
        loss = lookups(embedding, adds_to_grad=False)
    loss.backward()
    assert embedding.weight.grad is not None
    return embedding.weight.grad


@pytest.mark.parametrize("padding", [None, 0, -1])
@pytest.mark.parametrize("has_earlier", [False, True])
def test_gradient_is_that_of_autograd(padding: int | None, has_earlier: bool) -> None:
    earlier = torch.randn(ROWS, WIDTH, dtype=torch.float64) if has_earlier else None
    ours = gradient(padding, in_place=True, earlier=earlier)
    torch.testing.assert_close(ours, gradient(padding, in_place=False, earlier=earlier))


def test_backward_makes_nothing_of_the_size_of_the_embedding() -> None:
    """But weight.grad itself, once, however many passes there are."""
    embedding = nn.Embedding(1000, 8)
    tokens = torch.tensor([[3, 7, 3]])
    with RowGradients(embedding.weight):
        loss = sum((embedding(tokens + shift).sum() for shift in range(3)), torch.zeros(()))
    with torch.profiler.profile(profile_memory=True) as profile:
        loss.backward()
    whole = embedding.weight.numel() * 4
    large = [event for event in profile.events() if event.self_cpu_memory_usage >= whole]
    assert len(large) == 1, large
    expected = torch.zeros(1000, 8)
    expected[3:10] = torch.tensor([2.0, 2, 2, 0, 1, 1, 1])[:, None]
    torch.testing.assert_close(embedding.weight.grad, expected)


def test_a_head_that_comes_first_writes_no_zeros() -> None:
    """Nor does it read what stands in the new memory; a batch without a label leaves zeros."""
    weight = nn.Parameter(torch.randn(1000, 8))
    hidden, labels = torch.randn(1, 5, 8), torch.tensor([[3, 7, 3, 999, 0]])
    (expected,) = torch.autograd.grad(language_model_loss(hidden, weight, labels), weight)

    def after_backward(labels: Tensor) -> Tensor:
        language_model_loss(hidden, weight, labels, adds_to_grad=True).backward()
        assert weight.grad is not None
        return weight.grad

    torch.use_deterministic_algorithms(True)  # new memory is filled with NaN
    try:
        torch.testing.assert_close(after_backward(labels), expected)
    finally:
        torch.use_deterministic_algorithms(False)
    torch.testing.assert_close(after_backward(labels), 2 * expected)  # adds
    weight.grad = None
    assert after_backward(torch.full((1, 5), -100)).eq(0).all()


def test_other_lookups_stay_as_they_are() -> None:
    mine, other = (nn.Embedding(5, 2, dtype=torch.float64) for _ in range(2))
    tokens = torch.tensor([1, 1, 4])
    with RowGradients(mine.weight):
        renormalized = F.embedding(tokens, mine.weight, max_norm=0.1)
        foreign = other(tokens)
        with torch.no_grad():
            assert mine(tokens).grad_fn is None
    assert type(renormalized.grad_fn).__name__ == "EmbeddingBackward0"
    assert type(foreign.grad_fn).__name__ == "EmbeddingBackward0"


def test_second_derivative_is_refused() -> None:
    embedding = nn.Embedding(5, 2)
    with RowGradients(embedding.weight):
        vectors = embedding(torch.tensor([1, 2]))
    with pytest.raises(RuntimeError, match="embedding: create_graph must be False, got True"):
        vectors.square().sum().backward(create_graph=True)
