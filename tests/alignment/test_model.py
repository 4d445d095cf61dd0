"""AlignmentModel against the model's own hidden states and loss and the reference contrast."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from crossalign import reference
from crossalign.alignment.model import AlignmentModel, AlignmentOutput
from crossalign.pooling.choices import Pooling
from crossalign.pooling.functions import pool
from tests.support.process_group import run_ranks
from tests.support.tiny_models import LAYERS, tiny_batch, tiny_model

PAIRS = 5
Batch = dict[str, Tensor]


def sentences(seed: int, count: int = PAIRS, side: str = "right") -> Batch:
    return tiny_batch((7, 4, 1, 5, 6)[:count], side=side, seed=seed)


def texts(seed: int = 8) -> Batch:
    """Three texts whose first tokens are a prompt, and so not scored."""
    batch = tiny_batch((9, 6, 4), seed=seed)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    labels[:, :2] = -100
    return {**batch, "labels": labels}


def plain_output(
    model: nn.Module,
    source: Batch,
    target: Batch,
    negatives: Batch | None = None,
    lm: Batch | None = None,
    *,
    layer: int = 1,
    pooling: Pooling = "mean",
    contrastive_weight: float = 1.0,
    lm_weight: float = 1.5,
    **options: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """From whole hidden states, whole similarities and whole logits."""

    def embed(batch: Batch) -> Tensor:
        hidden = model(**batch, output_hidden_states=True).hidden_states[layer]
        return pool(hidden, batch["attention_mask"], pooling)

    asking = {"hard_negative_weight", "false_negative_margin", "directions"}
    if negatives is not None and asking & options.keys():
        options["negative_owner"] = torch.arange(len(negatives["input_ids"]))
    contrastive_loss, _ = reference.contrastive_loss(
        embed(source),
        embed(target),
        None if negatives is None else embed(negatives),
        **{"temperature": 0.05, **options},
    )
    lm_loss = torch.zeros(()) if lm is None else model(**lm).loss
    contrastive_loss = contrastive_loss.float()
    loss = contrastive_weight * contrastive_loss + lm_weight * lm_loss
    return loss, contrastive_loss, lm_loss


def gradients(model: nn.Module, loss: Tensor) -> list[Tensor | None]:
    model.zero_grad()
    loss.backward()
    return [parameter.grad for parameter in model.parameters()]


def assert_same_gradients(ours: list[Tensor | None], theirs: list[Tensor | None]) -> None:
    assert any(gradient is not None for gradient in theirs)
    for mine, other in zip(ours, theirs, strict=True):
        if mine is None or other is None:
            assert mine is other
        else:
            atol = 1e-5 * float(other.abs().max()) + 1e-8
            torch.testing.assert_close(mine, other, rtol=1e-4, atol=atol)


CASES: dict[str, dict[str, Any]] = {
    "defaults": {},
    "deeper, last token, both directions": {"layer": 2, "pooling": "last", "symmetric": True},
    "weights": {"contrastive_weight": 0.3, "lm_weight": 0.0, "temperature": 0.2},
    "hard negatives": {"hard_negative_weight": 1.5},
    "joint": {
        **{"directions": ("query_to_key", "key_to_query", "query_to_query", "key_to_key")},
        **{"false_negative_margin": 0.01, "label_smoothing": 0.1, "hardness": 2.0, "debias": 0.05},
    },
    "last layer, maximum": {"layer": -1, "pooling": "max"},
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", ["gpt2", "gemma2", "opt"])
def test_losses_and_gradients_equal_plain_ones(name: str, case: str) -> None:
    options = CASES[case]
    model = tiny_model(name)
    batches = (sentences(1), sentences(2, side="left"), sentences(3), texts())
    output = AlignmentModel(model, **options)(*batches)
    left = batches[1]
    # The plain model numbers positions from the left edge if it is not told otherwise.
    told = {**left, "position_ids": (left["attention_mask"].cumsum(1) - 1).clamp(min=0)}
    expected = plain_output(model, batches[0], told, *batches[2:], **options)
    for mine, other in zip(output[:3], expected, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)
    assert output.loss.dtype == torch.float32 and output.loss.shape == ()
    assert_same_gradients(gradients(model, output.loss), gradients(model, expected[0]))


def test_ids_and_negatives_of_another_number() -> None:
    model, ids = tiny_model("gpt2"), torch.tensor([4, 7, 4, 2, 7])
    batches = (sentences(1), sentences(2), sentences(3, count=2))
    output = AlignmentModel(model)(*batches, ids=ids)
    expected = plain_output(model, *batches, ids=ids)
    torch.testing.assert_close(output.loss, expected[0])
    assert not torch.allclose(output.loss, AlignmentModel(model)(*batches).loss)


def test_without_texts_the_lm_loss_is_zero() -> None:
    model = tiny_model("gpt2")
    output = AlignmentModel(model)(sentences(1), sentences(2))
    assert isinstance(output, AlignmentOutput)
    assert output.lm_loss == 0 and output.lm_loss.shape == ()
    assert torch.equal(output.loss, output.contrastive_loss)
    trained = gradients(model, output.loss)
    assert all(gradient is None for gradient in trained[-2:])  # the final norm takes no part


def test_texts_without_labels_that_count() -> None:
    model = tiny_model("gpt2")
    lm = {**texts(), "labels": torch.full_like(texts()["labels"], -100)}
    output = AlignmentModel(model)(sentences(1), sentences(2), None, lm)
    assert output.lm_loss == 0
    assert all(gradient.isfinite().all() for gradient in gradients(model, output.loss))


def test_statistics_of_the_batch() -> None:
    model = tiny_model("gpt2")
    output = AlignmentModel(model)(sentences(1), sentences(1))
    assert output.stats.accuracy == 1 and not output.stats.accuracy.requires_grad
    torch.testing.assert_close(output.stats.positive_similarity, torch.tensor(1.0))


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_sentences_run_no_block_past_the_layer_and_the_head_never_runs(layer: int) -> None:
    model = tiny_model("gpt2")
    aligned = AlignmentModel(model, layer=layer)
    aligned(sentences(1), sentences(2), None, texts())  # checks the head, once
    calls = [0] * (LAYERS + 1)
    for index, module in enumerate(
        (*model.get_submodule("transformer.h").children(), model.lm_head)
    ):
        module.register_forward_pre_hook(
            lambda *_, index=index: calls.__setitem__(index, calls[index] + 1)
        )
    aligned(sentences(1), sentences(2), sentences(3))
    assert calls == [3] * layer + [0] * (LAYERS + 1 - layer)
    aligned(sentences(1), sentences(2), None, texts())
    assert calls == [3 + 3] * layer + [1] * (LAYERS - layer) + [0]


def test_learned_temperature_is_a_parameter() -> None:
    temperature = nn.Parameter(torch.tensor(0.1))
    aligned = AlignmentModel(tiny_model("gpt2"), temperature=temperature)
    assert any(parameter is temperature for parameter in aligned.parameters())
    aligned(sentences(1), sentences(2)).loss.backward()
    exact = torch.tensor(0.1, requires_grad=True)
    plain_output(aligned.model, sentences(1), sentences(2), temperature=exact)[0].backward()
    torch.testing.assert_close(temperature.grad, exact.grad, rtol=1e-4, atol=1e-6)


def test_lora_checkpointing_and_autocast_train_together() -> None:
    peft = pytest.importorskip("peft")
    with warnings.catch_warnings():  # peft and this test use a name that 5.23 deprecates
        warnings.simplefilter("ignore", FutureWarning)
        base = tiny_model("llama")
        base.gradient_checkpointing_enable({"use_reentrant": False})
        model = peft.get_peft_model(base, peft.LoraConfig(target_modules="all-linear", r=2))
    aligned = AlignmentModel(model.train(), layer=2)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.02)
    losses = []
    for _ in range(15):
        with torch.autocast("cpu", torch.bfloat16):
            output = aligned(sentences(1), sentences(2), None, texts())
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        losses.append(output.loss.item())
    assert losses[-1] < 0.7 * losses[0]
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)


def test_batches_of_a_tokenizer_pass() -> None:
    """GPT-2 adds token_type_ids to its embeddings as if they were words."""
    from transformers import BatchEncoding

    model = tiny_model("gpt2")
    source = {**sentences(1), "token_type_ids": torch.ones_like(sentences(1)["input_ids"])}
    output = AlignmentModel(model)(BatchEncoding(source), BatchEncoding(sentences(2)))
    expected = AlignmentModel(model)(sentences(1), sentences(2))
    assert torch.equal(output.loss, expected.loss)


def test_bad_options_are_named() -> None:
    model = tiny_model("gpt2")
    cases: list[tuple[type[Exception], str, dict[str, Any]]] = [
        (ValueError, r"AlignmentModel: layer must lie between -4 and 3 .* got 4", {"layer": 4}),
        (TypeError, "AlignmentModel: layer must be an integer, got float", {"layer": 1.0}),
        (ValueError, "pooling must be one of 'mean', 'last', 'max'", {"pooling": "cls"}),
        (ValueError, "temperature must be a finite number above 0", {"temperature": 0.0}),
        (TypeError, "AlignmentModel: temperature must be a number or a 0-d", {"temperature": "x"}),
        (TypeError, "AlignmentModel: symmetric must be True or False", {"symmetric": "yes"}),
        (ValueError, "AlignmentModel: debias must be at least 0 and below 1", {"debias": 1.0}),
    ]
    for error, message, options in cases:
        with pytest.raises(error, match=message):
            AlignmentModel(model, **options)


def test_bad_batches_are_named() -> None:
    model = tiny_model("gpt2")
    good, ids = sentences(1), sentences(1)["input_ids"]
    no_mask, short_mask = {"input_ids": ids}, {**good, "attention_mask": ids[:, 1:]}
    cases: list[tuple[type[Exception], str, tuple[Any, ...]]] = [
        (TypeError, "source must be a dict of tensors, got Tensor", (ids, good)),
        (ValueError, r"source must hold input_ids and attention_mask, got \['inp", (no_mask, good)),
        (TypeError, r"target\['input_ids'\] must be a torch.Tensor, got list",
         (good, {**good, "input_ids": [1]})),
        (ValueError, r"target\['input_ids'\] must have shape \(B, T\)",
         (good, {key: value[0] for key, value in good.items()})),
        (ValueError, r"target\['attention_mask'\] must have the shape of", (good, short_mask)),
        (ValueError, "target must have the 5 rows of source, got 3", (good, sentences(2, count=3))),
        (ValueError, "lm must hold input_ids and labels", (good, good, None, good)),
        (ValueError, r"lm\['labels'\] must have the shape of input_ids",
         (good, good, None, {**good, "labels": ids[:, 1:]})),
        (ValueError, r"negatives must have one row per pair \(5\) for hard_.*, got 3",
         (good, good, sentences(2, count=3))),
    ]  # fmt: skip
    for error, message, batches in cases:
        with pytest.raises(error, match=message):
            AlignmentModel(model, hard_negative_weight=1.0)(*batches)


# Across processes

RANK_ROWS = (slice(0, 3), slice(3, PAIRS))
RANK_TEXTS = (slice(0, 1), slice(1, 3))


def part(batch: Batch, rows: slice) -> Batch:
    return {name: tensor[rows] for name, tensor in batch.items()}


def _gradients_of_rank(rank: int, wrapper: str) -> tuple[list[Tensor], list[Tensor]]:
    model = tiny_model("gpt2")
    aligned = AlignmentModel(model, group=dist.group.WORLD, hard_negative_weight=0.5)
    if wrapper == "ddp":
        parallel: Any = DistributedDataParallel(aligned)
    else:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh("cpu", (2,))
        for block in model.transformer.h:
            fully_shard(block, mesh=mesh)
        parallel = fully_shard(aligned, mesh=mesh)
    for _ in range(2):  # the second step meets whatever state the first one left
        parallel.zero_grad()
        output = parallel(
            *(part(sentences(seed), RANK_ROWS[rank]) for seed in (1, 2, 3)),
            part(texts(), RANK_TEXTS[rank]),
        )
        output.loss.backward()
    own: list[Any] = [parameter.grad for parameter in model.parameters()]
    if wrapper == "fsdp":
        own = [gradient.full_tensor() for gradient in own]
    return [loss.detach() for loss in output[:3]], own


@pytest.mark.parametrize("wrapper", ["ddp", "fsdp"])
def test_two_processes_equal_one(wrapper: str) -> None:
    ranks = run_ranks(_gradients_of_rank, 2, wrapper)
    model = tiny_model("gpt2")
    batches = (sentences(1), sentences(2), sentences(3), texts())
    expected = plain_output(model, *batches, hard_negative_weight=0.5)
    for first, second, whole in zip(ranks[0][0], ranks[1][0], expected, strict=True):
        torch.testing.assert_close((first + second) / 2, whole.detach(), rtol=1e-5, atol=1e-6)
    theirs = gradients(model, expected[0])
    for _, own in ranks:
        assert_same_gradients(own, theirs)
