"""GradientCache against one big batch: dropout, autocast, frozen parts, LoRA."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from crossalign.contrastive.gradient_cache import GradientCache
from crossalign.contrastive.loss import fused_contrastive_loss
from crossalign.contrastive.module import ContrastiveLoss
from tests.support.gradient_cache_cases import (
    ROWS,
    assert_equal_gradients,
    gradients,
    make_encoder,
    rows,
)
from tests.support.tiny_models import tiny_batch, tiny_model


def loss_of(*embeddings: Tensor) -> Tensor:
    return fused_contrastive_loss(*embeddings, temperature=0.3)


def one_big_batch(
    encode: Callable[[Tensor], Tensor], loss: Callable[..., Tensor], chunk: int, *sides: Tensor
) -> Tensor:
    """All activations at once; the same draws of dropout, for they follow the order of chunks."""
    embeddings = [torch.cat([encode(part) for part in side.split(chunk)]) for side in sides]
    value = loss(*embeddings)
    value.backward()
    return value.detach()


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
@pytest.mark.parametrize("negatives", [0, 5])
@pytest.mark.parametrize("chunk", [1, 3, 7, 100])
def test_live_dropout_equals_one_big_batch(chunk: int, negatives: int, device: str) -> None:
    sides = [rows(), rows(seed=2)] + ([rows(negatives, seed=3)] if negatives else [])
    sides = [side.to(device) for side in sides]
    encoder = make_encoder().to(device)
    torch.manual_seed(9)
    expected = one_big_batch(encoder, loss_of, chunk, *sides)
    after_big_batch = torch.rand(3, device=device)
    theirs = gradients(encoder)
    encoder.zero_grad()
    torch.manual_seed(9)
    loss = GradientCache(encoder, loss_of, chunk).backward(*sides)
    assert not loss.requires_grad
    torch.testing.assert_close(loss, expected, rtol=1e-13, atol=0)
    assert_equal_gradients(gradients(encoder), theirs)
    # What is drawn next is not a repetition of the masks just used.
    assert torch.equal(torch.rand(3, device=device), after_big_batch)


def test_dropout_that_is_not_replayed_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = make_encoder()
    torch.manual_seed(9)
    one_big_batch(encoder, loss_of, 3, rows(), rows(seed=2))
    theirs = gradients(encoder)
    encoder.zero_grad()
    torch.manual_seed(9)
    monkeypatch.setattr(
        "crossalign.contrastive.gradient_cache.second_pass.set_random_state", lambda state: None
    )
    GradientCache(encoder, loss_of, 3).backward(rows(), rows(seed=2))
    with pytest.raises(AssertionError):
        assert_equal_gradients(gradients(encoder), theirs)


def test_dicts_add_up_in_grad_and_no_grad_does_not_matter() -> None:
    encoder = make_encoder(dropout=0.0)
    sides = [{"x": rows(seed=i), "shift": rows(seed=i + 5)} for i in range(3)]
    sums = [side["x"] + side["shift"] for side in sides]
    one_big_batch(encoder, loss_of, 100, *sums)
    one_big_batch(encoder, loss_of, 100, *sums)
    theirs = gradients(encoder)
    encoder.zero_grad()
    cache = GradientCache(encoder, loss_of, 3)
    cache.backward(*sides)
    with torch.no_grad():
        cache.backward(*sides)
    assert_equal_gradients(gradients(encoder), theirs)


def test_learned_temperature_gets_its_gradient() -> None:
    encoder, loss = make_encoder(), ContrastiveLoss(0.2, learn_temperature=True)
    torch.manual_seed(9)
    one_big_batch(encoder, loss, 3, rows(), rows(seed=2))
    theirs = gradients(encoder, loss)
    encoder.zero_grad()
    loss.zero_grad()
    torch.manual_seed(9)
    GradientCache(encoder, loss, 3).backward(rows(), rows(seed=2))
    assert_equal_gradients(gradients(encoder, loss), theirs)


def test_frozen_parameters_and_frozen_sides() -> None:
    trained, frozen = make_encoder(), make_encoder().requires_grad_(False)
    trained.body[0].requires_grad_(False)
    calls = []

    def encode(inputs: dict[str, Tensor]) -> Tensor:
        is_query = bool(inputs["shift"].any())
        calls.append(is_query)
        return (trained if is_query else frozen)(inputs["x"])

    query = {"x": rows(), "shift": torch.ones(ROWS, 1)}
    key = {"x": rows(seed=2), "shift": torch.zeros(ROWS, 1)}
    torch.manual_seed(9)
    both = [torch.cat([trained(part) for part in query["x"].split(3)])]
    both += [torch.cat([frozen(part) for part in key["x"].split(3)])]
    loss_of(*both).backward()
    after_big_batch = torch.rand(3)
    theirs = gradients(trained)
    trained.zero_grad()
    torch.manual_seed(9)
    GradientCache(encode, loss_of, 3).backward(query, key)
    assert torch.equal(torch.rand(3), after_big_batch)
    assert_equal_gradients(gradients(trained), theirs)
    assert gradients(trained)[0] is None and gradients(frozen) == [None] * 4
    assert calls == [True] * 3 + [False] * 3 + [True] * 3  # the frozen side is embedded once


@pytest.mark.parametrize("where", ["around the call", "inside encode", "both"])
def test_autocast_equals_one_big_batch(where: str) -> None:
    encoder = make_encoder().float()
    sides = [rows().float(), rows(seed=2).float()]
    around = torch.autocast("cpu", torch.bfloat16, enabled=where != "inside encode")

    def encode(inputs: Tensor) -> Tensor:
        if where == "around the call":
            return encoder(inputs)
        with torch.autocast("cpu", torch.bfloat16):
            return encoder(inputs)

    torch.manual_seed(9)
    with around:
        embeddings = [torch.cat([encode(part) for part in side.split(3)]) for side in sides]
        loss = loss_of(*embeddings)
    loss.backward()
    theirs = gradients(encoder)
    encoder.zero_grad()
    torch.manual_seed(9)
    with around:
        ours = GradientCache(encode, loss_of, 3).backward(*sides)
    assert embeddings[0].dtype == torch.bfloat16
    assert torch.equal(ours, loss)
    for mine, other in zip(gradients(encoder), theirs, strict=True):
        assert mine.dtype == torch.float32 and other.abs().max() > 1e-4
        # Gradients of the chunks add up in float32 here, in bfloat16 in the big batch.
        torch.testing.assert_close(mine, other, rtol=0.02, atol=0.01 * float(other.abs().max()))


def test_backward_runs_outside_of_autocast() -> None:
    """The surrounding autocast rounded the gradients of layers that run in float32 on purpose."""
    encoder = make_encoder(dropout=0.0).float()
    sides = [rows().float(), rows(seed=2).float()]

    def encode(inputs: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return encoder(inputs)

    one_big_batch(encode, loss_of, 100, *sides)
    theirs = gradients(encoder)
    encoder.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        GradientCache(encode, loss_of, 3).backward(*sides)
    for mine, other in zip(gradients(encoder), theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-6)


def test_weights_that_a_frozen_side_cast_still_train_the_other() -> None:
    """Autocast keeps casts of weights; one made without autograd would lead no gradient back."""
    encoder = make_encoder(dropout=0.0).float()

    def encode(inputs: dict[str, Tensor]) -> Tensor:
        with torch.set_grad_enabled(torch.is_grad_enabled() and bool(inputs["shift"].any())):
            return encoder(inputs["x"])

    query = {"x": rows().float(), "shift": torch.zeros(ROWS, 1)}
    key = {"x": rows(seed=2).float(), "shift": torch.ones(ROWS, 1)}
    with torch.autocast("cpu", torch.bfloat16):
        GradientCache(encode, loss_of, 3).backward(query, key)
    assert all(gradient.abs().max() > 1e-4 for gradient in gradients(encoder))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_lora_on_a_language_model(checkpointing: bool) -> None:
    peft = pytest.importorskip("peft")
    from crossalign.models.hidden_states import hidden_states_at
    from crossalign.pooling.functions import pool

    base = tiny_model("llama").double()
    with warnings.catch_warnings():  # peft and transformers 5.23 name it by what 5.17 has
        warnings.simplefilter("ignore", FutureWarning)
        if checkpointing:
            base.gradient_checkpointing_enable({"use_reentrant": False})
        config = peft.LoraConfig(target_modules="all-linear", r=2, lora_dropout=0.2)
        model = peft.get_peft_model(base, config).train()
    batches = [tiny_batch((7, 4, 5, 6, 2), seed=seed) for seed in (1, 2)]

    def encode(batch: dict[str, Tensor]) -> Tensor:
        return pool(hidden_states_at(model, 2, **batch), batch["attention_mask"])

    torch.manual_seed(9)
    embeddings = [
        torch.cat(
            [  # each chunk as long as its longest row: 7, 6 and 2 tokens
                encode({k: v[i : i + 2, :width] for k, v in batch.items()})
                for i, width in ((0, 7), (2, 6), (4, 2))
            ]
        )
        for batch in batches
    ]
    loss_of(*embeddings).backward()
    theirs = gradients(model)
    model.zero_grad()
    torch.manual_seed(9)
    GradientCache(encode, loss_of, 2).backward(*batches)
    assert_equal_gradients(gradients(model), theirs)


def test_activations_of_one_chunk_at_a_time() -> None:
    """What the cache is for: in the second pass, rows that wait for their backward."""
    encoder, waiting, most = make_encoder(), 0, 0
    is_second_pass = False

    def encode(inputs: Tensor) -> Tensor:
        nonlocal waiting, most
        embedded = encoder(inputs)
        if is_second_pass:
            waiting += len(embedded)
            most = max(most, waiting)
            embedded.register_hook(went_back)
        return embedded

    def went_back(gradient: Tensor) -> None:
        nonlocal waiting
        waiting -= len(gradient)

    def loss(*embeddings: Tensor) -> Tensor:
        nonlocal is_second_pass
        is_second_pass = True
        return loss_of(*embeddings)

    GradientCache(encode, loss, 3).backward(rows(), rows(seed=2))
    assert most == 3 and waiting == 0


def test_bad_arguments_are_named() -> None:
    encoder = make_encoder()
    good = rows()
    with pytest.raises(ValueError, match="chunk_size must be at least 1, got 0"):
        GradientCache(encoder, loss_of, 0)

    def backward(*sides: Any, encode: Any = encoder, loss: Any = loss_of) -> None:
        GradientCache(encode, loss, 3).backward(*sides)

    with pytest.raises(ValueError, match="key_inputs must have the 7 rows of query_inputs, got 6"):
        backward(good, good[:6])
    with pytest.raises(TypeError, match=r"key_inputs\['x'\] must be a tensor whose .* got list"):
        backward(good, {"x": [1, 2]})
    with pytest.raises(TypeError, match=r"negative_inputs must be a tensor .* got a 0-d tensor"):
        backward(good, good, torch.tensor(1.0))
    with pytest.raises(ValueError, match="query_inputs must hold at least one tensor"):
        backward({}, good)
    with pytest.raises(TypeError, match=r"encode must return a torch.Tensor, got tuple"):
        backward(good, good, encode=lambda inputs: (inputs,))
    with pytest.raises(ValueError, match=r"encode must return \(n, D\) with n = 3.*\(3, 6, 1\)"):
        backward(good, good, encode=lambda inputs: inputs[:, :, None])
    with pytest.raises(
        ValueError, match=r"encode must return \(n, D\) with n = 3.*got shape \(2, 6"
    ):
        backward(good, good, encode=lambda inputs: inputs[:2])
    with pytest.raises(ValueError, match=r"loss must return a scalar, got shape \(7,\)"):
        backward(good, good, loss=lambda query, key: query.sum(1))
    with pytest.raises(TypeError, match=r"loss must return a torch.Tensor, got tuple"):
        backward(good, good, loss=lambda query, key: (query.sum(), None))
