"""Batches in whatever holds them, cut into chunks of rows and trimmed to their longest row."""

from __future__ import annotations

from collections import UserDict, namedtuple
from typing import Any

import pytest
import torch
from torch import Tensor

from crossalign.contrastive.gradient_cache import GradientCache
from crossalign.contrastive.gradient_cache.input_chunks import count_rows, split_rows
from tests.support.tiny_models import tiny_batch

Pair = namedtuple("Pair", "first second")


def split(inputs: Any, size: int = 2, trim: bool = True) -> list[Any]:
    return split_rows(inputs, count_rows("inputs", inputs), size, trim=trim)


def test_everything_but_the_batch_goes_into_every_chunk() -> None:
    """Features with a string in them ("modality", "task") were refused."""
    x, other = torch.arange(10).reshape(5, 2), torch.arange(3)
    inputs: dict[str, Any] = {
        "x": x,
        "modality": "text",
        "nested": {"y": x[:, 0], "scale": torch.tensor(2.0)},
        "pair": Pair(x, "prompt"),
        "list": [x, None],
        "other": other,
    }
    chunks = split(inputs)
    assert len(chunks) == 3
    for index, chunk in enumerate(chunks):
        rows = slice(2 * index, 2 * index + 2)
        assert list(chunk) == list(inputs)
        assert chunk["modality"] == "text" and chunk["other"] is other
        assert torch.equal(chunk["x"], x[rows])
        assert torch.equal(chunk["nested"]["y"], x[rows, 0])
        assert chunk["nested"]["scale"] is inputs["nested"]["scale"]
        assert isinstance(chunk["pair"], Pair) and chunk["pair"].second == "prompt"
        assert torch.equal(chunk["pair"].first, x[rows])
        assert torch.equal(chunk["list"][0], x[rows]) and chunk["list"][1] is None


def test_the_attention_mask_tells_the_batch() -> None:
    """Patches of images come flat, more of them than there are rows, and may stand first."""
    batch = {"pixel_values": torch.zeros(20, 4), **tiny_batch((3, 2, 3))}
    assert count_rows("inputs", batch) == 3
    assert [len(chunk["pixel_values"]) for chunk in split(batch)] == [20, 20]


def test_a_batch_encoding_stays_one() -> None:
    chunks = split(UserDict(tiny_batch((3, 2, 3))))
    assert all(isinstance(chunk, UserDict) for chunk in chunks)
    assert [len(chunk["input_ids"]) for chunk in chunks] == [2, 1]


def test_one_tensor_and_no_rows() -> None:
    assert [len(chunk) for chunk in split(torch.zeros(5, 2))] == [2, 2, 1]
    (empty,) = split({"x": torch.zeros(0, 2), "modality": "text"})
    assert empty["x"].shape == (0, 2) and empty["modality"] == "text"
    empty = split(tiny_batch((3, 2)), 2)[0]
    no_rows = {name: tensor[:0] for name, tensor in empty.items()}
    assert [chunk["input_ids"].shape for chunk in split(no_rows)] == [(0, 3)]


def widths(inputs: dict[str, Tensor], name: str = "input_ids", **options: Any) -> list[int]:
    return [chunk[name].shape[1] for chunk in split(inputs, **options)]


def test_chunks_are_trimmed_to_their_longest_row() -> None:
    batch = tiny_batch((7, 4, 5, 6, 2))
    batch["token_type_ids"] = torch.zeros(5, 7, dtype=torch.long)
    batch["inputs_embeds"] = torch.zeros(5, 7, 3)
    for name in batch:
        assert widths(batch, name) == [7, 6, 2]
    assert widths(batch, trim=False) == [7, 7, 7]
    for chunk, start in zip(split(batch), (0, 2, 4), strict=True):
        width = chunk["input_ids"].shape[1]
        assert torch.equal(chunk["input_ids"], batch["input_ids"][start : start + 2, :width])


def test_left_padding_stays_unless_positions_are_given() -> None:
    """A model without them counts positions from the first column."""
    batch = tiny_batch((7, 4, 5, 6, 2), side="left")
    assert widths(batch) == [7, 7, 7]
    batch["position_ids"] = (batch["attention_mask"].cumsum(1) - 1).clamp_min(0)
    chunks = split(batch)
    assert [chunk["input_ids"].shape[1] for chunk in chunks] == [7, 6, 2]
    assert all(bool(chunk["attention_mask"][:, -1].all()) for chunk in chunks)
    assert torch.equal(chunks[2]["position_ids"], torch.tensor([[0, 1]]))


def test_a_tensor_as_wide_as_the_mask_may_hold_features() -> None:
    batch = tiny_batch((7, 4, 2))
    batch["image_embeds"] = torch.zeros(3, 7)
    assert widths(batch) == [7, 7]
    batch["image_embeds"] = torch.zeros(3, 8)
    assert widths(batch) == [7, 2]
    assert widths(batch, "image_embeds") == [8, 8]


def test_a_chunk_of_padding_keeps_a_column() -> None:
    batch = tiny_batch((3, 2, 1, 1))
    batch["attention_mask"][2:] = 0
    assert widths(batch) == [3, 1]


def test_trimmed_chunks_have_the_gradient_of_the_batch() -> None:
    weight = torch.randn(97, 5, dtype=torch.float64).requires_grad_()

    def encode(batch: dict[str, Tensor]) -> Tensor:
        mask = batch["attention_mask"][:, :, None]
        return (weight[batch["input_ids"]] * mask).sum(1) / mask.sum(1)

    def loss(query: Tensor, key: Tensor) -> Tensor:
        return (query @ key.T).logsumexp(1).sum()

    sides = [tiny_batch((7, 4, 5, 6, 2), seed=seed) for seed in (1, 2)]
    expected = loss(*map(encode, sides))
    (theirs,) = torch.autograd.grad(expected, weight)
    GradientCache(encode, loss, 2)(*sides).backward()
    torch.testing.assert_close(weight.grad, theirs, rtol=1e-12, atol=1e-14)


def test_inputs_without_a_batch_are_named() -> None:
    for inputs, got in (("text", "str"), ([1, 2], "list"), (torch.tensor(1.0), "a 0-d tensor")):
        with pytest.raises(TypeError, match=f"side must be a tensor .* or hold one, got {got}"):
            count_rows("side", inputs)
    with pytest.raises(TypeError, match=r"side\['x'\] must be a tensor .* got list"):
        count_rows("side", {"x": [1, 2]})
    with pytest.raises(ValueError, match="side must hold at least one tensor, got an empty dict"):
        count_rows("side", {})
