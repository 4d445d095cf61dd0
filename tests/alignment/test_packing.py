"""Packed texts: how each family takes them, and that packing changes no state and no loss."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import nn

from crossalign.alignment.batches import Batches
from crossalign.alignment.config import TrainingConfig
from crossalign.alignment.model import AlignmentModel
from crossalign.alignment.packing import (
    MASK,
    PADDING,
    POSITIONS,
    Packing,
    choose_packing,
    first_fit,
    packed_texts,
)
from crossalign.data.items import LabeledTokens
from crossalign.data.pairs import Pair
from crossalign.models.encode import pad_right
from crossalign.models.hidden_states import hidden_states_at
from crossalign.models.next_token_loss import IGNORED_LABEL
from tests.support.tiny_models import CONFIGS, VOCAB_SIZE, tiny_model, tiny_tokenizer

CPU = torch.device("cpu")
# Longer than the windows (4) of the tiny models that have one.
LENGTHS = (9, 7, 2, 12, 1, 5, 3)
WAYS = dict.fromkeys(CONFIGS, POSITIONS) | {"xglm": MASK, "opt": MASK, "bloom": PADDING}


def random_rows(seed: int = 0) -> list[LabeledTokens]:
    """Some of the first tokens of each text are prompt."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for length in LENGTHS:
        ids = torch.randint(3, VOCAB_SIZE, (length,), generator=generator).tolist()
        rows.append(LabeledTokens(ids, [IGNORED_LABEL] * (length // 3) + ids[length // 3 :]))
    return rows


def padded_texts(rows: list[LabeledTokens]) -> dict[str, torch.Tensor]:
    labels = [torch.tensor(row.labels) for row in rows]
    padded = torch.nn.utils.rnn.pad_sequence(labels, True, IGNORED_LABEL)
    return {**pad_right([row.input_ids for row in rows], CPU), "labels": padded}


@pytest.mark.parametrize("attention", [None, "eager"])  # None: sdpa, where a family has it
@pytest.mark.parametrize("name", CONFIGS)
def test_packing_changes_no_state_and_no_loss(name: str, attention: str | None) -> None:
    """Each family in the way that is chosen for it, against a row for each text."""
    model = tiny_model(name, attn_implementation=attention)
    packing = choose_packing(model)
    assert packing.way == WAYS[name], packing.reason
    if packing.way == PADDING:
        return
    rows = random_rows()
    packed = packed_texts(rows, 16, packing)
    assert packed["input_ids"].shape == (3, 16)  # 39 tokens
    inputs = {key: packed[key] for key in packed if key not in ("labels", "lengths")}
    states = hidden_states_at(model, -1, **inputs)
    padded = padded_texts(rows)
    expected = hidden_states_at(
        model, -1, input_ids=padded["input_ids"], attention_mask=padded["attention_mask"]
    )
    for line, block in enumerate(first_fit(LENGTHS, 16)):
        start = 0
        for row in block:
            here = states[line, start : start + LENGTHS[row]]
            torch.testing.assert_close(here, expected[row, : LENGTHS[row]], rtol=1e-4, atol=1e-4)
            start += LENGTHS[row]
    alignment = AlignmentModel(model)
    torch.testing.assert_close(
        alignment.next_token_loss(packed), alignment.next_token_loss(padded), rtol=1e-5, atol=1e-6
    )


def test_unmasked_rows_would_change_the_loss() -> None:
    """What the test above would see if a model ignored where texts begin."""
    model, rows = tiny_model("llama"), random_rows()
    packed = packed_texts(rows, 16, Packing(POSITIONS, ""))
    del packed["position_ids"]
    alignment = AlignmentModel(model)
    right = alignment.next_token_loss(padded_texts(rows))
    assert abs(alignment.next_token_loss(packed) - right) > 0.01


@pytest.mark.parametrize("name", ["llama", "xglm"])
def test_gradients_of_packed_texts_are_those_of_padded_ones(name: str) -> None:
    model, rows = tiny_model(name), random_rows()
    alignment, gradients = AlignmentModel(model), []
    for texts in padded_texts(rows), packed_texts(rows, 16, choose_packing(model)):
        model.zero_grad()
        alignment.next_token_loss(texts).backward()
        gradients.append([each.grad for each in model.parameters() if each.grad is not None])
    for padded, packed in zip(*gradients, strict=True):
        torch.testing.assert_close(packed, padded, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["gpt2", "xglm", "bloom"])
def test_choice_does_not_depend_on_the_dtype(name: str, dtype: torch.dtype) -> None:
    model: nn.Module = tiny_model(name)
    assert choose_packing(model.to(dtype)).way == WAYS[name]


def test_models_that_cannot_be_packed_say_why() -> None:
    model = tiny_model("llama")
    model.config._attn_implementation = "flash_attention_2"
    assert choose_packing(model) == Packing(PADDING, "flash attention leaves padding out itself")
    model = tiny_model("llama")
    model.config.layer_types = ["full_attention", "linear_attention", "full_attention"]
    assert "full_attention, linear_attention) carry a state" in choose_packing(model).reason
    assert choose_packing(tiny_model("bloom")).reason == "BloomModel takes no position_ids"
    model = tiny_model("xglm")
    model.config.sliding_window = 4
    assert "prepared mask would replace" in choose_packing(model).reason


def test_a_model_that_lets_texts_meet_is_padded(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that takes position_ids and masks, and heeds neither for what a token may see."""
    model = tiny_model("llama")
    forward = type(model.get_decoder()).forward

    def leaky(self: Any, input_ids: Any = None, position_ids: Any = None, **rest: Any) -> Any:
        rest["attention_mask"] = torch.ones_like(input_ids)
        return forward(self, input_ids=input_ids, position_ids=position_ids, **rest)

    monkeypatch.setattr(type(model.get_decoder()), "forward", leaky)
    packing = choose_packing(model)
    assert packing == Packing(
        PADDING, "neither position_ids nor a prepared mask keep its texts apart"
    )


def test_choosing_leaves_the_model_as_it_was() -> None:
    model = tiny_model("gpt2").train()
    model.transformer.h[0].eval()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    choose_packing(model)
    assert model.training and not model.transformer.h[0].training
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    assert all(weight.grad is None for weight in model.parameters())


def test_blocks_are_filled_longest_first() -> None:
    assert first_fit((3, 8, 5, 2, 4), 8) == [[1], [2, 0], [4, 3]]
    assert first_fit((2, 2, 2), 2) == [[0], [1], [2]]
    blocks = first_fit(LENGTHS, 12)
    assert sorted(row for block in blocks for row in block) == list(range(len(LENGTHS)))
    assert all(sum(LENGTHS[row] for row in block) <= 12 for block in blocks)


def test_first_tokens_have_no_label_and_padding_stands_alone() -> None:
    rows = [LabeledTokens([5, 6, 7], [5, 6, 7]), LabeledTokens([8, 9], [8, 9])]
    rows.append(LabeledTokens([4, 4], [IGNORED_LABEL, 4]))
    packed = packed_texts(rows, 5, Packing(MASK, "", torch.bool))
    assert packed["input_ids"].tolist() == [[5, 6, 7, 8, 9], [4, 4, 0, 0, 0]]
    ignored = IGNORED_LABEL
    expected = [[ignored, 6, 7, ignored, 9], [ignored, 4, ignored, ignored, ignored]]
    assert packed["labels"].tolist() == expected
    assert packed["position_ids"].tolist() == [[0, 1, 2, 0, 1], [0, 1, 0, 0, 0]]
    assert packed["lengths"].tolist() == [5, 2]
    assert packed["attention_mask"][0, 0].int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [0, 0, 0, 1, 0],
        [0, 0, 0, 1, 1],
    ]
    assert packed["attention_mask"][1, 0, 2:].int().tolist() == torch.eye(5)[2:].int().tolist()
    floats = packed_texts(rows, 5, Packing(MASK, "", torch.float32))["attention_mask"]
    assert (floats == 0).equal(packed["attention_mask"])
    assert floats.min() == torch.finfo(torch.float32).min


def pairs_of_words(count: int) -> list[Pair]:
    return [
        Pair(
            " ".join(f"w{3 + (index + k) % 40}" for k in range(1 + index % 5)),
            f"w{50 + index % 40}",
        )
        for index in range(count)
    ]


@pytest.mark.parametrize("name", ["gpt2", "xglm", "bloom"])
def test_batches_pack_and_keep_loss_and_tokens(name: str, caplog: pytest.LogCaptureFixture) -> None:
    model, tokenizer, pairs = tiny_model(name), tiny_tokenizer(), pairs_of_words(40)
    alignment = AlignmentModel(model)
    losses, shapes, tokens = [], [], []
    for block_length in None, 24:
        with caplog.at_level(logging.INFO, "crossalign"):
            config = TrainingConfig(batch_size=16, block_length=block_length, device="cpu")
            batch = Batches(model, tokenizer, pairs, None, config).at(2, CPU)
        assert batch.lm is not None
        losses.append(alignment.next_token_loss(batch.lm))
        shapes.append(batch.lm["input_ids"].shape[0])
        tokens.append(batch.num_tokens)
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-5, atol=1e-6)
    assert tokens[0] == tokens[1]
    if name == "bloom":
        assert shapes == [16, 16] and "are padded, not packed: BloomModel takes" in caplog.text
    else:
        assert shapes[0] == 16 and shapes[1] < 8 and "are packed: " in caplog.text


def test_texts_are_cut_at_the_block_and_blocks_at_the_models_positions() -> None:
    pairs = [Pair(" ".join(["w5"] * 100), "w6"), Pair("w7", "w8")]
    for block_length, expected in (10, 10), (1000, 64):
        config = TrainingConfig(batch_size=2, block_length=block_length, device="cpu")
        batches = Batches(tiny_model("gpt2"), tiny_tokenizer(), pairs, None, config)
        batch = batches.at(0, CPU)
        assert batch.lm is not None
        assert batch.lm["input_ids"].shape[1] == expected
        assert int(batch.lm["position_ids"].max()) == expected - 1
