"""The engine in one process: chunks, precision, adapters, checkpointing, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from crossalign import reference
from crossalign.alignment.batches import Inputs, StepBatch
from crossalign.alignment.train import AlignmentRun
from crossalign.pooling.functions import pool
from tests.support.tiny_models import CONFIGS, tiny_model, tiny_tokenizer
from tests.support.training import CPU, make_config, make_pairs, run_align, without_seconds

PAIRS = make_pairs(9, negatives=True)


DROPOUTS: tuple[str, ...] = (
    "attn_pdrop",
    "resid_pdrop",
    "embd_pdrop",
    "attention_dropout",
    "dropout",
)


DROPOUTS += ("activation_dropout", "hidden_dropout", "resid_dropout", "embed_dropout")


# Families whose own code forms float32 values; two of them overflow or give NaN in float64.
MIXED = {
    "bloom": 1e-5,
    "gpt_neo": 1e-5,
    "gemma": 1e-5,
    "cohere2": 1e-5,
    "xglm": 1e-3,
    "gemma2": 1e-3,
}


FLOAT32 = ("xglm", "gemma2")


def quiet_model(name: str) -> nn.Module:
    """In float64 and without dropout, so that training mode computes what the formula says."""
    model = tiny_model(name)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for attribute in DROPOUTS:
            if isinstance(getattr(module, attribute, None), float):
                setattr(module, attribute, 0.0)
    return model if name in FLOAT32 else model.double()


def start(model: nn.Module, **settings: Any) -> AlignmentRun:
    defaults = {"batch_size": 6, "lm_batch_size": 4, "hard_negative_weight": 0.7}
    return AlignmentRun(model, tiny_tokenizer(), PAIRS, make_config(**{**defaults, **settings}))


def gradients_of_step(run: AlignmentRun) -> tuple[Tensor, list[Tensor | None]]:
    run.passes.train()
    values = run._backward(run.batches.at(0, CPU))
    return values, [parameter.grad for parameter in run.alignment.parameters()]


def plain_loss(model: nn.Module, batch: StepBatch, layers: tuple[int, ...], **options: Any) -> Any:
    """Contrastive and next-token loss from all hidden states, all similarities, all logits."""

    def embed(inputs: Inputs, layer: int) -> Tensor:
        inputs = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        hidden = model(**inputs, output_hidden_states=True).hidden_states[layer]
        return pool(hidden, inputs["attention_mask"], "mean")

    assert batch.negatives is not None and batch.lm is not None
    sides = (batch.source, batch.target, batch.negatives)
    losses = [
        reference.contrastive_loss(
            *(embed(side, layer) for side in sides),
            ids=batch.ids,
            negative_owner=torch.arange(len(batch.ids)),
            **options,
        )[0]
        for layer in layers
    ]
    lm = {name: batch.lm[name] for name in ("input_ids", "attention_mask", "labels")}
    logits = model(input_ids=lm["input_ids"], attention_mask=lm["attention_mask"]).logits
    next_token = nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), lm["labels"][:, 1:].flatten(), ignore_index=-100
    )
    return torch.stack(losses).mean(), next_token


CHUNKS = {"whole": {}, "one chunk": {"chunk_size": 5}, "four": {"chunk_size": 2}}


CHUNKS["four"]["lm_chunk_size"] = 1


@pytest.mark.parametrize("name", CONFIGS)
def test_losses_and_gradients_are_those_of_the_formula(name: str) -> None:
    """Every family, at once and in chunks: the plain sum of both losses."""
    model, tolerance = quiet_model(name), MIXED.get(name, 1e-9)
    for chunks in CHUNKS.values():
        run = start(model, **chunks)
        values, ours = gradients_of_step(run)
        grads = [gradient.clone() for gradient in ours if gradient is not None]
        model.zero_grad()
        contrastive, next_token = plain_loss(
            model,
            run.batches.at(0, CPU),
            (1,),
            temperature=0.05,
            hard_negative_weight=0.7,
        )
        (contrastive + 1.5 * next_token).backward()
        expected = torch.stack([contrastive + 1.5 * next_token, contrastive, next_token])
        torch.testing.assert_close(values[:3], expected.detach().double(), rtol=tolerance, atol=0)
        theirs = [each.grad for each in model.parameters() if each.grad is not None]
        for mine, other in zip(grads, theirs, strict=True):
            atol = tolerance * float(other.abs().max()) + (1e-7 if tolerance > 1e-9 else 1e-10)
            torch.testing.assert_close(mine, other, rtol=10 * tolerance, atol=atol)
        model.zero_grad()


@pytest.mark.parametrize("chunks", [{}, {"chunk_size": 2}])
def test_several_layers_are_the_mean_of_their_losses(chunks: dict[str, int]) -> None:
    """In any order, with a learned temperature, whose gradient is that of the mean too."""
    model = quiet_model("llama")
    run = start(model, layer=(-1, 1), symmetric=True, learn_temperature=True, **chunks)
    calls = []
    model.get_submodule("model.layers.0").register_forward_pre_hook(lambda *_: calls.append(1))
    values, ours = gradients_of_step(run)
    # One for all layers; + 2: the head's check, of the logits and of the states before them.
    assert len(calls) == (4 if not chunks else 2 * 3 * 3 + 2) + 2
    *weights, scale = [gradient.clone() for gradient in (*ours[1:], ours[0])]
    model.zero_grad()
    temperature = torch.tensor(0.05, dtype=torch.float64, requires_grad=True)
    contrastive, next_token = plain_loss(
        model,
        run.batches.at(0, CPU),
        (3, 1),
        temperature=temperature,
        hard_negative_weight=0.7,
        symmetric=True,
    )
    (contrastive + 1.5 * next_token).backward()
    torch.testing.assert_close(values[1], contrastive.detach(), rtol=1e-6, atol=1e-6)
    for mine, other in zip(weights, model.parameters(), strict=True):
        torch.testing.assert_close(mine, other.grad, rtol=1e-5, atol=1e-6)
    # d/d log(1/t) = -t d/dt; the parameter is float32.
    torch.testing.assert_close(scale.double(), -0.05 * temperature.grad, rtol=1e-5, atol=1e-6)


def test_learned_temperature_is_trained_recorded_and_bounded() -> None:
    run = start(quiet_model("gpt2"), learn_temperature=True, temperature=0.0101, steps=40)
    records = list(run.steps(progress=False))
    assert records[0]["temperature"] != pytest.approx(0.0101, rel=1e-6)
    run.alignment.logit_scale.data.fill_(9.0)
    assert run.alignment.temperature.item() == pytest.approx(0.01)


@pytest.mark.parametrize("chunks", [{}, {"chunk_size": 2}])
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_trains_as_float32_does(precision: str, chunks: dict[str, int]) -> None:
    """fp16: the scaled gradients go through both passes of GradientCache and are scaled back."""
    results = []
    for settings in ({}, {"precision": precision, **chunks}):
        run = start(quiet_model("llama").float(), **settings)
        if precision == "fp16" and settings:
            run.engine.scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
        values, gradients = gradients_of_step(run)
        norm = run.engine.clip(run.optimizer, run.parameters)
        results.append((values, norm, torch.cat([each.flatten() for each in gradients])))
        assert all(each.dtype == torch.float32 for each in (*run.parameters, *gradients))
    (whole, norm, gradient), (values, rounded_norm, rounded) = results
    torch.testing.assert_close(values[:3], whole[:3], rtol=0.03, atol=0.03)
    assert not torch.equal(values, whole)
    torch.testing.assert_close(rounded_norm, norm, rtol=0.05, atol=0)
    assert torch.nn.functional.cosine_similarity(rounded, gradient, dim=0) > 0.99


def test_overflow_of_fp16_halves_the_scale_and_skips_the_update() -> None:
    model = tiny_model("gpt2")
    run = start(model, precision="fp16", steps=3)
    run.engine.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    before = [parameter.clone() for parameter in model.parameters()]
    records = run.steps(progress=False)
    assert next(records)["loss_scale"] == 2.0**39
    assert all(map(torch.equal, before, model.parameters()))
    run.engine.scaler.load_state_dict({**run.engine.scaler.state_dict(), "scale": 1024.0})
    assert next(records)["loss_scale"] == 1024.0
    assert not all(map(torch.equal, before, model.parameters()))


@pytest.mark.parametrize("name", ["gpt2", "llama", "bloom"])
def test_checkpointed_activations_change_nothing(name: str) -> None:
    with_dropout = {"model_options": {"resid_pdrop": 0.1}} if name == "gpt2" else {}
    plain = run_align(PAIRS, make_config(chunk_size=2), name, **with_dropout)
    twice = run_align(
        PAIRS, make_config(chunk_size=2, gradient_checkpointing=True), name, **with_dropout
    )
    assert without_seconds(plain[0]) == without_seconds(twice[0])
    assert all(torch.equal(plain[1][key], twice[1][key]) for key in plain[1])


@pytest.mark.parametrize("extra", [{}, {"chunk_size": 2, "gradient_checkpointing": True}])
def test_adapters_alone_are_trained(extra: dict[str, Any]) -> None:
    model = tiny_model("llama")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    run = start(model, lora_rank=2, steps=12, learning_rate=0.05, precision="bf16", **extra)
    records = list(run.steps(progress=False))
    assert records[-1]["loss"] < 0.8 * records[0]["loss"]
    names = [name for name, each in run.alignment.named_parameters() if each.requires_grad]
    assert names and all("lora_" in name for name in names)
    after = {key.replace(".base_layer", ""): value for key, value in model.state_dict().items()}
    assert all(torch.equal(after[key], before[key]) for key in before)
    with pytest.raises(ValueError, match="lora_rank must be None for a model that has adapters"):
        start(run.language_model, lora_rank=2)


def test_adapters_are_not_put_upon_those_that_were_loaded(tmp_path: Path) -> None:
    """They were, and were then saved as if they belonged to the model without the first ones."""
    from transformers import AutoModelForCausalLM

    tiny_model("llama").save_pretrained(tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    run = start(model, lora_rank=2, steps=1)
    run.language_model.save_pretrained(tmp_path / "adapters", save_embedding_layers=False)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "adapters")
    with pytest.raises(ValueError, match="a model that has adapters; merge them first"):
        start(model, lora_rank=2)
    start(run.language_model.merge_and_unload(), lora_rank=2, steps=1)


def test_attention_is_chosen() -> None:
    model = tiny_model("llama")
    for attention in ("eager", "sdpa"):
        start(model, attention=attention)
        assert model.config._attn_implementation == attention


def test_share_of_the_pretraining_tokens_is_recorded() -> None:
    records, _ = run_align(PAIRS, make_config(steps=3, pretraining_tokens=1e4))
    used = 0.0
    for record in records:
        used += record["tokens"]
        assert record["pretraining_share"] == used / 1e4


@pytest.mark.slow
# Of the compiler's own imports, and of its looking at the inputs of a block.
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore:The .grad attribute")
def test_compiled_blocks_train_alike() -> None:
    plain, _ = run_align(PAIRS, make_config(steps=2))
    compiled, _ = run_align(PAIRS, make_config(steps=2, compile=True))
    for one, other in zip(without_seconds(plain), without_seconds(compiled), strict=True):
        assert one == pytest.approx(other, rel=1e-3)
