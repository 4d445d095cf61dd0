"""GradientCache called for a loss: what its backward leaves under any factor, for any inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from crossalign.contrastive.gradient_cache import GradientCache
from crossalign.contrastive.loss import fused_contrastive_loss
from crossalign.contrastive.module import ContrastiveLoss
from tests.support.gradient_cache_cases import (
    FEATURES,
    ROWS,
    assert_equal_gradients,
    gradients,
    make_encoder,
    rows,
)


def loss_of(*embeddings: Tensor, **options: Any) -> Tensor:
    return fused_contrastive_loss(*embeddings, temperature=0.3, **options)


def embed(encode: Callable[[Tensor], Tensor], chunk: int, *sides: Tensor) -> list[Tensor]:
    """All activations at once; the same draws of dropout, for they follow the order of chunks."""
    return [torch.cat([encode(part) for part in side.split(chunk)]) for side in sides]


@pytest.mark.parametrize("factor", [1.0, 0.25, 1024.0])
def test_any_factor_scales_every_gradient(factor: float) -> None:
    """The loss came detached, and its gradients were made before any factor could reach them."""
    encoder, loss = make_encoder(), ContrastiveLoss(0.2, learn_temperature=True)
    head = nn.Linear(FEATURES, 1).double()  # a second loss in the same backward
    torch.manual_seed(9)
    expected = loss(*embed(encoder, 3, rows(), rows(seed=2)))
    (factor * expected + head(rows()).mean()).backward()
    after_big_batch = torch.rand(3)
    theirs = gradients(encoder, loss, head)
    for module in (encoder, loss, head):
        module.zero_grad()
    torch.manual_seed(9)
    ours = GradientCache(encoder, loss, 3)(rows(), rows(seed=2))
    torch.testing.assert_close(ours, expected, rtol=1e-13, atol=0)
    assert gradients(encoder, loss) == [None] * 5
    (factor * ours + head(rows()).mean()).backward()
    assert_equal_gradients(gradients(encoder, loss, head), theirs)
    assert torch.equal(torch.rand(3), after_big_batch)


def test_accumulated_batches_add_up() -> None:
    encoder = make_encoder(dropout=0.0)
    batches = [(rows(seed=2 * i), rows(seed=2 * i + 1)) for i in range(4)]
    for batch in batches:
        (loss_of(*map(encoder, batch)) / 4).backward()
    theirs = gradients(encoder)
    encoder.zero_grad()
    cache = GradientCache(encoder, loss_of, 3)
    for batch in batches:
        (cache(*batch) / 4).backward()
    assert_equal_gradients(gradients(encoder), theirs)


def test_two_losses_of_one_backward_do_not_mix() -> None:
    encoder = make_encoder()
    sides = (rows(), rows(seed=2))
    torch.manual_seed(9)
    first, second = (loss_of(*embed(encoder, chunk, *sides)) for chunk in (3, 2))
    (first - 2 * second).backward()
    theirs = gradients(encoder)
    encoder.zero_grad()
    torch.manual_seed(9)
    first, second = (GradientCache(encoder, loss_of, chunk)(*sides) for chunk in (3, 2))
    (first - 2 * second).backward()
    assert_equal_gradients(gradients(encoder), theirs)


def test_keywords_and_negatives_go_to_the_loss() -> None:
    encoder = make_encoder(dropout=0.0)
    sides = [rows(), rows(seed=2), rows(4, seed=3)]
    options = {
        "ids": torch.tensor([0, 1, 2, 0, 3, 4, 1]),
        "negative_ids": torch.tensor([0, 7, 8, 1]),
        "negative_owner": torch.tensor([0, 1, 1, 6]),
        "hard_negative_weight": 0.5,
        "weights": torch.linspace(0.5, 2, ROWS, dtype=torch.float64),
    }
    expected = loss_of(*map(encoder, sides), **options)
    assert expected != loss_of(*map(encoder, sides))
    expected.backward()
    theirs = gradients(encoder)
    encoder.zero_grad()
    ours = GradientCache(encoder, loss_of, 3)(*sides, **options)
    ours.backward()
    torch.testing.assert_close(ours, expected, rtol=1e-13, atol=0)
    assert_equal_gradients(gradients(encoder), theirs)
    encoder.zero_grad()
    GradientCache(encoder, loss_of, 3).backward(*sides, **options)
    assert_equal_gradients(gradients(encoder), theirs)


def test_no_more_sides_than_given_and_none_is_handed_on() -> None:
    encoder, seen = make_encoder(dropout=0.0), []

    def loss(*embeddings: Tensor | None) -> Tensor:
        seen.append([None if each is None else len(each) for each in embeddings])
        return loss_of(*embeddings[:2])  # type: ignore[arg-type]

    cache = GradientCache(encoder, loss, 3)
    cache(rows(), rows(seed=2), None, rows(2, seed=3))
    cache.backward(rows(), rows(seed=2), None)
    assert seen == [[ROWS, ROWS, None, 2], [ROWS, ROWS]]


@pytest.mark.parametrize("container", [list, tuple, nn.ModuleList])
def test_each_side_has_its_own_encoder_and_chunk_size(container: type) -> None:
    torch.manual_seed(0)
    towers = [make_encoder(), nn.Linear(FEATURES, 5).double()]
    calls: list[tuple[int, int]] = []
    for number, tower in enumerate(towers):
        tower.register_forward_pre_hook(
            lambda _, inputs, number=number: calls.append((number, len(inputs[0])))
        )
    sides = (rows(), rows(seed=2))
    torch.manual_seed(9)
    query, key = (
        embed(tower, size, side)[0] for tower, size, side in zip(towers, (3, 5), sides, strict=True)
    )
    loss_of(query, key).backward()
    theirs = gradients(*towers)
    for tower in towers:
        tower.zero_grad()
    calls.clear()
    torch.manual_seed(9)
    GradientCache(container(towers), loss_of, (3, 5))(*sides).backward()
    assert_equal_gradients(gradients(*towers), theirs)
    assert calls == [(0, 3), (0, 3), (0, 1), (1, 5), (1, 2)] * 2


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_autograd_it_only_evaluates(mode: Callable[[], Any]) -> None:
    """It filled .grad during an evaluation, and the next update was of the wrong batch."""
    encoder = make_encoder()
    calls: list[int] = []
    encoder.register_forward_hook(lambda _, inputs, output: calls.append(len(output)))
    torch.manual_seed(9)
    expected = loss_of(*embed(encoder, 3, rows(), rows(seed=2)))
    calls.clear()
    torch.manual_seed(9)
    with mode():
        loss = GradientCache(encoder, loss_of, 3)(rows(), rows(seed=2))
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-13, atol=0)
    assert not loss.requires_grad and gradients(encoder) == [None] * 4
    assert calls == [3, 3, 1] * 2


def test_frozen_encoder_with_a_trained_loss_runs_once() -> None:
    encoder = make_encoder(dropout=0.0).requires_grad_(False)
    loss = ContrastiveLoss(0.2, learn_temperature=True)
    loss(encoder(rows()), encoder(rows(seed=2))).backward()
    theirs = gradients(loss)
    loss.zero_grad()
    calls: list[int] = []
    encoder.register_forward_hook(lambda _, inputs, output: calls.append(len(output)))
    GradientCache(encoder, loss, 3)(rows(), rows(seed=2)).backward()
    assert_equal_gradients(gradients(loss), theirs)
    assert calls == [3, 3, 1] * 2


@pytest.mark.parametrize("backward_inside", [False, True])
def test_autocast_of_the_call_holds_in_its_backward(backward_inside: bool) -> None:
    """Trainers leave autocast before they call backward: pass 2 would embed in float32."""
    encoder = make_encoder(dropout=0.0).float()
    dtypes = []
    encoder.register_forward_hook(lambda _, inputs, output: dtypes.append(output.dtype))
    around = torch.autocast("cpu", torch.bfloat16)
    with around:
        loss = GradientCache(encoder, loss_of, 4)(rows().float(), rows(seed=2).float())
        if backward_inside:
            loss.backward()
    if not backward_inside:
        loss.backward()
    assert dtypes == [torch.bfloat16] * 8
    assert all(gradient.abs().max() > 1e-4 for gradient in gradients(encoder))


def test_backward_twice_follows_autograd() -> None:
    encoder = make_encoder()
    loss = GradientCache(encoder, loss_of, 3)(rows(), rows(seed=2))
    loss.backward(retain_graph=True)
    once = [gradient.clone() for gradient in gradients(encoder)]
    loss.backward()
    assert_equal_gradients(gradients(encoder), [2 * gradient for gradient in once])
    with pytest.raises(RuntimeError, match=r"second time|already been freed"):
        loss.backward()


def test_differentiating_twice_raises() -> None:
    loss = GradientCache(make_encoder(), nn.functional.mse_loss, 3)(rows(), rows(seed=2))
    with pytest.raises(RuntimeError, match="cannot be differentiated again; call backward"):
        loss.backward(create_graph=True)


def test_bad_lists_are_named() -> None:
    encoder = make_encoder()
    with pytest.raises(ValueError, match=r"encode must have one entry for each of the 3 .* got 2"):
        GradientCache([encoder, encoder], loss_of, 3)(rows(), rows(), rows())
    with pytest.raises(ValueError, match=r"chunk_size must have one entry .* the 2 inputs, got 1"):
        GradientCache(encoder, loss_of, [3])(rows(), rows())
    with pytest.raises(ValueError, match="chunk_size must be at least 1, got 0"):
        GradientCache(encoder, loss_of, [3, 0])
    with pytest.raises(TypeError, match=r"loss must be a loss such as ContrastiveLoss.* got 0\.05"):
        GradientCache(torch.nn.Identity(), 0.05, 2)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"chunk_size must be an integer, .* got float"):
        GradientCache(encoder, loss_of, 2.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="key_inputs must have the 7 rows of query_inputs, got 6"):
        GradientCache(encoder, loss_of, 3)(rows(), rows(6))


def test_keys_with_their_own_ids_may_be_of_another_number() -> None:
    encoder = make_encoder()

    def loss(query: Tensor, key: Tensor, *, key_ids: Tensor) -> Tensor:
        return query.square().sum() + (key_ids @ key).sum()

    ids = torch.ones(6, dtype=torch.float64)
    value = GradientCache(encoder, loss, 3)(rows(), rows(6), key_ids=ids)
    assert value.dim() == 0
