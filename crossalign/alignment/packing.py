"""Several texts in one row, none of which sees another: less padding for the next-token loss.

How a model keeps packed texts apart depends on its code and its kind of attention. So
choose_packing asks the model itself, and names a reason:

- positions: position_ids restart with every text and there is no attention_mask; transformers
  (masking_utils) then sees where texts begin. GPT-2, GPT-Neo, Llama, Mistral, Qwen3, Gemma, ...
- mask: besides, a prepared (B, 1, T, T) attention_mask says who may look at whom. XGLM and OPT,
  whose code does not hand their position_ids to masking_utils.
- padding: a row for each text. BLOOM, whose ALiBi needs a (B, T) mask and no positions; flash
  attention, which drops padding itself and sees packed texts only in a batch of one row; models
  with recurrent layers.

Shapes: B blocks, T tokens of a block.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from crossalign.alignment.padding import LENGTHS
from crossalign.data.items import LabeledTokens
from crossalign.models.attention_mask import hides_others, mask_dtype, prepared_mask
from crossalign.models.encode import input_device
from crossalign.models.hidden_states import eval_mode, hidden_states_at, text_config
from crossalign.models.next_token_loss import IGNORED_LABEL

POSITIONS, MASK, PADDING = "positions", "mask", "padding"
_ATTENTION_LAYERS = ("full_attention", "sliding_attention", "chunked_attention")


class Packing(NamedTuple):
    """How a model takes packed texts, and why so."""

    way: str  # POSITIONS, MASK or PADDING
    reason: str
    mask_dtype: torch.dtype = torch.bool  # of the prepared mask: bool, or float to be added


def choose_packing(model: Any) -> Packing:
    """The first way in which the model gives a packed text the states that it has by itself.

    Runs a row of nine tokens through it in each way, without gradient. Ask before the model is
    sharded.
    """
    config = text_config(model)
    attention = str(getattr(config, "_attn_implementation", "eager"))
    if attention.startswith("flash"):
        return Packing(PADDING, "flash attention leaves padding out itself")
    layers = set(getattr(config, "layer_types", None) or ())
    if not layers <= set(_ATTENTION_LAYERS):
        return Packing(PADDING, f"its layers ({', '.join(sorted(layers))}) carry a state along")
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else model
    if "position_ids" not in inspect.signature(decoder.forward).parameters:
        return Packing(PADDING, f"{type(decoder).__name__} takes no position_ids")
    if _keeps_apart(model, Packing(POSITIONS, "")):
        return Packing(POSITIONS, "restarting position_ids keep its texts apart")
    if getattr(config, "sliding_window", None) or len(layers) > 1:
        return Packing(PADDING, "a prepared mask would replace that of its sliding windows")
    dtype = mask_dtype(model)
    if _keeps_apart(model, Packing(MASK, "", dtype)):
        return Packing(MASK, "its position_ids do not keep texts apart, a mask does", dtype)
    return Packing(PADDING, "neither position_ids nor a prepared mask keep its texts apart")


def packed_texts(
    rows: Sequence[LabeledTokens], block_length: int, packing: Packing
) -> dict[str, Any]:
    """input_ids, labels, position_ids (B, T), lengths (B,) and, if packed so, attention_mask.

    The first token of a text has no label: in its block the token before it is of another text.
    Padding at the end of a block is a text of its own at every position.
    """
    blocks = first_fit([len(row.input_ids) for row in rows], block_length)
    lengths = torch.tensor([sum(len(rows[row].input_ids) for row in block) for block in blocks])
    shape = (len(blocks), int(lengths.max()))
    input_ids, position_ids = (
        torch.zeros(shape, dtype=torch.long),
        torch.zeros(shape, dtype=torch.long),
    )
    labels = torch.full(shape, IGNORED_LABEL)
    text_of = -1 - torch.arange(shape[1]).repeat(shape[0], 1)  # negative: padding
    for line, block in enumerate(blocks):
        start = 0
        for row in block:
            ids, targets = rows[row]
            here = slice(start, start + len(ids))
            input_ids[line, here] = torch.tensor(ids, dtype=torch.long)
            labels[line, here] = torch.tensor([IGNORED_LABEL, *targets[1:]][: len(ids)])
            position_ids[line, here] = torch.arange(len(ids))
            text_of[line, here] = row
            start += len(ids)
    texts = {"input_ids": input_ids, "labels": labels, "position_ids": position_ids}
    if packing.way == MASK:
        texts["attention_mask"] = _mask_of_texts(text_of, packing.mask_dtype)
    return {**texts, LENGTHS: lengths}


def first_fit(lengths: Sequence[int], block_length: int) -> list[list[int]]:
    """Texts of each block: the longest first, each into the first block with room for it."""
    blocks: list[list[int]] = []
    room: list[int] = []
    for text in sorted(range(len(lengths)), key=lambda text: -lengths[text]):
        fitting = (block for block, free in enumerate(room) if free >= lengths[text])
        block = next(fitting, len(blocks))
        if block == len(blocks):
            blocks.append([])
            room.append(block_length)
        blocks[block].append(text)
        room[block] -= lengths[text]
    return blocks


def _mask_of_texts(text_of: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, 1, T, T): a position looks at itself and at earlier ones of its own text."""
    return prepared_mask((text_of[:, :, None] == text_of[:, None, :]).tril(), dtype)


def _keeps_apart(model: Any, packing: Packing) -> bool:
    """Whether a text behind another in a row has the states that it has by itself.

    Measured against the states that it has where nothing keeps the two apart: the same row and
    positions under a mask that hides nothing.
    """
    device = input_device(model)
    vocabulary = model.get_input_embeddings().weight.shape[0]
    tokens = [token % vocabulary for token in range(3, 12)]
    rows = [LabeledTokens(tokens[:5], tokens[:5]), LabeledTokens(tokens[5:], tokens[5:])]
    packed = {
        name: tensor.to(device)
        for name, tensor in packed_texts(rows, 9, packing).items()
        if name in ("input_ids", "position_ids", "attention_mask")
    }
    mixed = {**packed, "attention_mask": torch.ones_like(packed["input_ids"])}
    alone = {
        "input_ids": packed["input_ids"][:, 5:],
        "attention_mask": mixed["attention_mask"][:, 5:],
    }
    with eval_mode(model), torch.no_grad():
        expected = hidden_states_at(model, -1, **alone).float()
        leaking = hidden_states_at(model, -1, **mixed).float()[:, 5:]
        try:
            states = hidden_states_at(model, -1, **packed).float()[:, 5:]
        except (ValueError, RuntimeError, IndexError):  # a model that takes no prepared mask
            if packing.way == MASK:
                return False
            raise
    return hides_others(model, states, expected, leaking)
