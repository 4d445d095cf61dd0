"""The alignment loop in memory: what it optimizes, its batches, its labels, its records."""

from __future__ import annotations

import io
import json
import logging
import math
from typing import Any

import pytest
import torch

from crossalign.alignment.batches import Batches
from crossalign.alignment.config import TrainingConfig
from crossalign.alignment.model import AlignmentModel
from crossalign.alignment.schedule import learning_rate_at
from crossalign.alignment.train import AlignmentRun, Record, align
from crossalign.data.pairs import Pair
from crossalign.data.permutation import ShuffledStream
from tests.support.tiny_models import tiny_model, tiny_tokenizer
from tests.support.training import (
    CPU,
    DROPOUT,
    NO_DROPOUT,
    make_config,
    make_pairs,
    run_align,
    without_seconds,
)


def test_losses_fall_and_pairs_are_found() -> None:
    pairs = make_pairs(64)
    config = make_config(steps=60, batch_size=16, learning_rate=3e-3)
    records, _ = run_align(pairs, config)
    first, last = records[0], records[-1]
    assert last["contrastive_loss"] < 0.5 * first["contrastive_loss"]
    assert last["lm_loss"] < 0.8 * first["lm_loss"]
    assert last["accuracy"] > first["accuracy"] + 0.3


def test_records_say_what_a_step_did() -> None:
    pairs = make_pairs(20)
    records, _ = run_align(pairs, make_config(lm_weight=0.5, lm_batch_size=3))
    names = ["step", "loss", "contrastive_loss", "lm_loss", "accuracy"]
    names += ["learning_rate", "pairs", "tokens", "seconds"]
    assert [list(record) for record in records] == [names] * 3
    assert [record["step"] for record in records] == [1, 2, 3]
    for record in records:
        joint = record["contrastive_loss"] + 0.5 * record["lm_loss"]
        assert record["loss"] == pytest.approx(joint, rel=1e-6)
        assert record["pairs"] == 8
        assert record["seconds"] > 0
        assert json.loads(json.dumps(record)) == record
    batches = Batches(tiny_model("llama"), tiny_tokenizer(), pairs, None, make_config())
    batch = batches.at(0, CPU)
    words = sum(len(text.split()) for i in batches.pair_stream.take(0, 8) for text in pairs[i][:2])
    # A translation item has both sentences, "=" and the end of the sentence.
    texts = sum(
        len(batches.lm_items[i]["clm_text"].split()) + 1 for i in batches.lm_stream.take(0, 8)
    )
    assert batch.num_tokens == words + texts


def test_first_step_is_the_first_gradient_of_the_alignment_model() -> None:
    """From zero moments, AdamW moves each weight by the learning rate against the sign.

    In float64, since an update divides a gradient by its own size: where that is nothing but
    rounding, the update is as large as any other and differs from one CPU to the next.
    """
    pairs = make_pairs(8)
    config = make_config(steps=1)
    model, tokenizer = tiny_model("gpt2", **NO_DROPOUT).double(), tiny_tokenizer()
    batch = Batches(model, tokenizer, pairs, None, config).at(0, CPU)
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    output = AlignmentModel(model)(batch.source, batch.target, lm=batch.lm, ids=batch.ids)
    output.loss.backward()
    gradients = {name: weight.grad for name, weight in model.named_parameters()}
    model.zero_grad()
    records: list[Record] = []
    align(model, tokenizer, pairs, config, on_step=records.append)
    assert records[0]["loss"] == output.loss.item()
    norm = torch.cat([gradient.flatten() for gradient in gradients.values()]).norm()
    assert norm > 1  # so that clipping matters below
    for name, weight in model.named_parameters():
        clipped = gradients[name] / (norm + 1e-6)
        expected = before[name] - 1e-3 * clipped / (clipped.abs() + 1e-8)
        torch.testing.assert_close(weight, expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("chunk_size", [1, 3])
def test_chunks_give_the_numbers_of_the_whole_batch(chunk_size: int) -> None:
    pairs = make_pairs(20, negatives=True)
    settings = {"hard_negative_weight": 0.5, "symmetric": True, "layer": 2, "lm_batch_size": 5}
    # In float64: an update divides a gradient by its own size, rounding included.
    whole, whole_weights = run_align(pairs, make_config(**settings), dtype=torch.float64)
    chunked, chunked_weights = run_align(
        pairs, make_config(**settings, chunk_size=chunk_size), dtype=torch.float64
    )
    for one, other in zip(without_seconds(whole), without_seconds(chunked), strict=True):
        assert one == pytest.approx(other, rel=1e-6)
    for name, weight in whole_weights.items():
        torch.testing.assert_close(chunked_weights[name], weight, rtol=0, atol=1e-6, msg=name)


@pytest.mark.parametrize("settings", [{}, {"chunk_size": 3}])
def test_two_runs_give_the_same_numbers(settings: dict[str, Any]) -> None:
    """With dropout, whatever the state of the global generator before."""
    pairs, runs = make_pairs(20), []
    for _ in range(2):
        runs.append(run_align(pairs, make_config(**settings), "gpt2", model_options=DROPOUT))
        torch.rand(5)
    assert without_seconds(runs[0][0]) == without_seconds(runs[1][0])
    assert all(torch.equal(runs[0][1][name], runs[1][1][name]) for name in runs[0][1])
    other, _ = run_align(pairs, make_config(**settings, seed=1), "gpt2", model_options=DROPOUT)
    assert without_seconds(other) != without_seconds(runs[0][0])


def test_negatives_and_their_weight_reach_the_loss() -> None:
    losses = [
        run_align(make_pairs(20, negatives), make_config(steps=1, hard_negative_weight=weight))[0][
            0
        ]
        for negatives, weight in ((False, 0.0), (True, 0.0), (True, 2.0))
    ]
    assert losses[0]["contrastive_loss"] < losses[1]["contrastive_loss"]
    assert losses[1]["contrastive_loss"] < losses[2]["contrastive_loss"]


def test_pairs_that_mean_the_same_are_no_negatives() -> None:
    """Two pairs that share a source: alone in a batch, neither has a negative, so the loss is 0."""
    pairs = [Pair("w3", "w43"), Pair("W3", "w50")]
    with pytest.warns(UserWarning, match="negative"):
        records, _ = run_align(pairs, make_config(steps=1, lm_weight=0.0))
    assert records[0]["contrastive_loss"] == 0.0


def test_without_lm_weight_no_text_is_read() -> None:
    pairs = make_pairs(20)
    records, weights = run_align(pairs, make_config(lm_weight=0.0))
    assert [record["lm_loss"] for record in records] == [0.0] * 3
    last_block = tiny_model("llama").state_dict()
    name = "model.layers.2.mlp.up_proj.weight"
    assert torch.equal(weights[name], last_block[name])


def test_frozen_weights_stay() -> None:
    model = tiny_model("llama")
    model.model.embed_tokens.requires_grad_(False)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    align(model, tiny_tokenizer(), make_pairs(8), make_config(steps=1))
    assert torch.equal(
        model.state_dict()["model.embed_tokens.weight"], before["model.embed_tokens.weight"]
    )
    name = "model.layers.0.mlp.up_proj.weight"
    assert not torch.equal(model.state_dict()[name], before[name])
    with pytest.raises(ValueError, match="model must have a parameter that requires grad"):
        align(model.requires_grad_(False), tiny_tokenizer(), make_pairs(8), make_config())


def test_model_keeps_its_mode_and_the_tokenizer_its_settings() -> None:
    tokenizer, model = tiny_tokenizer(padding_side="left"), tiny_model("llama")
    modes = []
    align(
        model,
        tokenizer,
        make_pairs(8),
        make_config(steps=1),
        on_step=lambda record: modes.append(model.training),
    )
    assert modes == [True]
    assert not model.training
    assert (tokenizer.pad_token, tokenizer.padding_side) == (None, "left")


def test_loss_that_is_not_finite_stops_before_the_update() -> None:
    model = tiny_model("llama")
    pairs, config = make_pairs(8), make_config(steps=5)
    records: list[Record] = []

    def break_weights(record: Record) -> None:
        records.append(record)
        if record["step"] == 2:
            with torch.no_grad():
                model.model.layers[0].mlp.up_proj.weight[0, 0] = math.nan

    with pytest.raises(RuntimeError, match=r"step 3 is not finite: loss nan \(contrastive nan"):
        align(model, tiny_tokenizer(), pairs, config, on_step=break_weights)
    assert [record["step"] for record in records] == [1, 2]
    assert all(
        weight.isfinite().all()
        for name, weight in model.named_parameters()
        if name != "model.layers.0.mlp.up_proj.weight"
    )


def test_schedule_rises_then_follows_a_cosine() -> None:
    config = TrainingConfig(steps=200, learning_rate=2.0)
    rates = [learning_rate_at(step, config) for step in range(200)]
    assert rates[:6] == pytest.approx([2 * (step + 1) / 6 for step in range(6)])
    assert rates[6] == 2.0
    assert rates[6:] == sorted(rates[6:], reverse=True)
    assert rates[6 + 97] == pytest.approx(1.0)  # half way
    assert 0 < rates[-1] < 1e-3
    assert learning_rate_at(0, TrainingConfig(steps=1, learning_rate=2.0)) == 2.0


def test_stream_uses_everything_once_per_pass_in_a_new_order() -> None:
    stream = ShuffledStream(10, "seed")
    passes = [stream.take(start, 10) for start in (0, 10, 20)]
    assert all(sorted(each) == list(range(10)) for each in passes)
    assert passes[0] != passes[1] != passes[2]
    assert stream.take(7, 16) == [*passes[0][7:], *passes[1], *passes[2][:3]]
    assert ShuffledStream(10, "seed").take(13, 4) == passes[1][3:7]  # no need to start at 0
    assert ShuffledStream(10, "other").take(0, 10) != passes[0]


def test_few_pairs_make_one_batch_and_say_so(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "crossalign"):
        records, _ = run_align(make_pairs(5), make_config(steps=2))
    assert [record["pairs"] for record in records] == [5, 5]
    assert "batch_size is 8, but there are 5 pairs: every batch holds all of them" in caplog.text


@pytest.mark.parametrize(
    ("pairs", "settings", "options", "message"),
    [
        (1, {}, {}, "pairs must hold at least two pairs, got 1"),
        (8, {}, {"lm_items": []}, "lm_items must hold at least one item"),
        (8, {"layer": 4}, {}, "layer must lie between -4 and 3"),
        (8, {"device": "abacus"}, {}, "device must be auto, cpu, cuda"),
        (8, {"device": "cuda:99"}, {}, "device 'cuda:99' is not there"),
    ],
)
def test_bad_input_is_an_error(
    pairs: int, settings: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        run_align(make_pairs(pairs), make_config(**settings), **options)


def test_pairs_that_are_plain_tuples_are_named() -> None:
    """build_items takes them, and here an attribute of theirs was missing."""
    pairs: Any = [tuple(pair[:2]) for pair in make_pairs(4)]
    with pytest.raises(TypeError, match=r"pairs must hold crossalign.data.pairs.Pair, got tu"):
        align(tiny_model("gpt2"), tiny_tokenizer(), pairs, TrainingConfig(steps=1))


def test_negatives_for_some_pairs_only_are_an_error() -> None:
    pairs = [*make_pairs(7), *make_pairs(1, negatives=True)]
    with pytest.raises(ValueError, match="either all pairs must have a negative, or none"):
        run_align(pairs, make_config())


def test_run_goes_on_from_its_state() -> None:
    """Through torch.save with weights_only, into a fresh model: the numbers of an unbroken run."""
    pairs, config = make_pairs(20), make_config(steps=5)

    def start() -> AlignmentRun:
        return AlignmentRun(tiny_model("gpt2", **DROPOUT), tiny_tokenizer(), pairs, config)

    unbroken = list(start().steps(progress=False))
    first = start()
    records = first.steps(progress=False)
    begun = [next(records), next(records)]
    buffer = io.BytesIO()
    torch.save(first.state(), buffer)
    records.close()
    buffer.seek(0)
    second = start()
    torch.rand(9)
    second.load_state(torch.load(buffer, weights_only=True))
    assert without_seconds([*begun, *second.steps(progress=False)]) == without_seconds(unbroken)
