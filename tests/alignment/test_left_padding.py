"""Left padding gives the losses and gradients of right padding; no entry of a batch is lost."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from crossalign.alignment.model import AlignmentModel, AlignmentOutput
from crossalign.pooling.choices import Pooling
from tests.support.tiny_models import CONFIGS, VOCAB_SIZE, tiny_model

Batch = dict[str, Tensor]
LENGTHS = ((7, 4, 1, 6), (3, 5, 2, 6), (6, 3, 4, 5))


def padded(seed: int, side: str, *, labels: bool = False) -> Batch:
    """The same sentences for either side; what stands in the padding differs."""
    generator = torch.Generator().manual_seed(seed)
    width = 8
    filler = 5 if side == "left" else 9
    batch = {
        "input_ids": torch.full((4, width), filler),
        "attention_mask": torch.zeros(4, width, dtype=torch.long),
    }
    if labels:
        batch["labels"] = torch.full((4, width), -100)
    for row, length in enumerate(LENGTHS[seed]):
        ids = torch.randint(3, VOCAB_SIZE, (length,), generator=generator)
        here = slice(width - length, width) if side == "left" else slice(0, length)
        batch["input_ids"][row, here] = ids
        batch["attention_mask"][row, here] = 1
        if labels:
            batch["labels"][row, here] = ids
    return batch


def step(name: str, side: str, pooling: Pooling = "mean") -> tuple[AlignmentOutput, list[Tensor]]:
    model = tiny_model(name)
    batches = padded(0, side), padded(1, side), None, padded(2, side, labels=True)
    output = AlignmentModel(model, layer=2, pooling=pooling)(*batches)
    output.loss.backward()
    return output, [each.grad for each in model.parameters() if each.grad is not None]


@pytest.mark.parametrize("name", CONFIGS)
def test_left_padding_gives_what_right_padding_gives(name: str) -> None:
    """GPT-2, GPT-Neo, XGLM and others count positions from the left edge of a row."""
    left, right = step(name, "left"), step(name, "right")
    for mine, expected in zip(left[0][:3], right[0][:3], strict=True):
        torch.testing.assert_close(mine, expected, rtol=2e-5, atol=2e-5)
    assert len(left[1]) == len(right[1])
    for mine, expected in zip(left[1], right[1], strict=True):
        bound = 1e-4 * float(expected.abs().max()) + 1e-7
        torch.testing.assert_close(mine, expected, rtol=1e-3, atol=bound)


def test_positions_of_the_caller_are_kept() -> None:
    """Of the sentences; those of texts are used for packing."""
    model = tiny_model("gpt2")
    alignment = AlignmentModel(model)
    batch = padded(0, "right")
    shifted = {**batch, "position_ids": torch.arange(8).expand(4, 8) + 3}
    hidden = model(**shifted, output_hidden_states=True).hidden_states[1]
    mask = batch["attention_mask"][..., None]
    expected = (hidden * mask).sum(1) / mask.sum(1)
    torch.testing.assert_close(alignment.embed(shifted), expected)
    assert not torch.allclose(alignment.embed(batch), expected, atol=1e-3)


def test_an_entry_that_the_model_takes_reaches_it(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("gpt2")
    forward, seen = model.forward, []

    def with_language(language: Tensor | None = None, **inputs: Tensor) -> object:
        seen.append(language)
        return forward(**inputs)

    monkeypatch.setattr(model, "forward", with_language)
    language = torch.full((4, 8), 7)
    AlignmentModel(model)({**padded(0, "right"), "language": language}, padded(1, "right"))
    assert seen[0] is language and seen[1] is None


@pytest.mark.parametrize("which", range(4))
def test_an_entry_that_the_model_does_not_take_is_named(which: int) -> None:
    names = ("source", "target", "negatives", "lm")
    batches = [padded(0, "right") for _ in range(3)] + [padded(2, "right", labels=True)]
    batches[which]["language"] = torch.zeros(4, 8, dtype=torch.long)
    message = f"AlignmentModel: {names[which]} must hold what the model's forward takes, got 'lan"
    with pytest.raises(ValueError, match=message):
        AlignmentModel(tiny_model("llama"))(*batches)
