"""Texts that begin alike, in one row of a batch: what they share runs through the model once.

A row holds the tokens of its first text, then of each further one those that it does not share with
the text before it. A prepared mask shows each token its own text only, and position_ids count along
that text. Whether a model takes this is asked of the model itself (can_join).

Shapes: B rows, T tokens of a row.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from crossalign.models.attention_mask import hides_others, mask_dtype, prepared_mask
from crossalign.models.encode import input_device, pad_right
from crossalign.models.hidden_states import eval_mode, hidden_states_at, text_config

LEAST_SHARED = 8  # tokens that are worth a prepared mask
_LONGEST_ROW = 512  # tokens; attention costs their square
# Of configurations: within so many tokens a window hides nothing, whatever it counts.
_WINDOWS = ("sliding_window", "window_size", "attention_chunk_size")


class Row(NamedTuple):
    """Texts of one row.

    Attributes:
        tokens, positions: of the row; where each stands in its text.
        paths: of each text, the place in the row of each of its tokens.
        texts: number of each text among those that were given.
    """

    tokens: list[int]
    positions: list[int]
    paths: list[list[int]]
    texts: list[int]


def joined_rows(texts: Sequence[Sequence[int]], most_texts: int, most_tokens: int) -> Iterator[Row]:
    """Rows of neighboring texts that share at least LEAST_SHARED tokens.

    most_texts, most_tokens: of a row of several texts; 0 tokens: none has several.
    """
    row = Row([], [], [], [])
    for number, text in enumerate(texts):
        before = texts[row.texts[-1]] if row.texts else []
        count = num_shared(before, text)
        num_tokens = len(row.tokens) + len(text) - count
        fits = len(row.texts) < most_texts and num_tokens <= most_tokens
        if not fits or count < LEAST_SHARED:
            if row.texts:
                yield row
            row, count = Row([], [], [], []), 0
        shared = row.paths[-1][:count] if count else []
        start = len(row.tokens)
        row.tokens.extend(text[count:])
        row.positions.extend(range(count, len(text)))
        row.paths.append([*shared, *range(start, len(row.tokens))])
        row.texts.append(number)
    if row.texts:
        yield row


def num_shared(one: Sequence[int], other: Sequence[int]) -> int:
    """Tokens that both begin with."""
    count = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        count += 1
    return count


def model_inputs(model: Any, rows: Sequence[Row]) -> dict[str, Tensor]:
    """What the model's forward takes; a plain batch where no row has several texts."""
    device = input_device(model)
    inputs = pad_right([row.tokens for row in rows], device)
    if all(len(row.texts) == 1 for row in rows):
        return inputs
    width = inputs["input_ids"].shape[1]
    is_seen = torch.eye(width, dtype=torch.bool).repeat(len(rows), 1, 1)  # padding sees itself
    position_ids = torch.zeros(len(rows), width, dtype=torch.long)
    for line, row in enumerate(rows):
        position_ids[line, : len(row.tokens)] = torch.tensor(row.positions)
        for path in row.paths:
            places = torch.tensor(path)
            ones = torch.ones(len(path), len(path), dtype=torch.bool)
            is_seen[line, places[:, None], places] = ones.tril()
    mask = prepared_mask(is_seen.to(device), mask_dtype(model))
    return {**inputs, "attention_mask": mask, "position_ids": position_ids.to(device)}


def longest_row(model: Any) -> int:
    """Tokens of the longest row of several texts, 0 where the model does not take joined texts."""
    config = text_config(model)
    windows = [getattr(config, name, None) for name in _WINDOWS]
    return min([_LONGEST_ROW, *filter(None, windows)]) if can_join(model) else 0


def can_join(model: Any) -> bool:
    """Whether two joined texts have the states that each has by itself.

    Measured on a few tokens, against the states that they have where the mask hides nothing.
    """
    attention = str(getattr(text_config(model), "_attn_implementation", "eager"))
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else model
    if attention.startswith("flash"):  # takes no prepared mask
        return False
    if "position_ids" not in inspect.signature(decoder.forward).parameters:
        return False
    vocabulary = model.get_input_embeddings().weight.shape[0]
    tokens = [token % vocabulary for token in range(3, 3 + LEAST_SHARED + 4)]
    shared, one, other = tokens[:LEAST_SHARED], tokens[LEAST_SHARED:-2], tokens[-2:]
    (row,) = joined_rows([shared + one, shared + other], 2, _LONGEST_ROW)
    with eval_mode(model), torch.no_grad():
        inputs = model_inputs(model, [row])
        alone = pad_right([shared + other], input_device(model))
        expected = hidden_states_at(model, -1, **alone).float()[0]
        mixed = {**inputs, "attention_mask": torch.ones_like(inputs["input_ids"])}
        leaking = hidden_states_at(model, -1, **mixed).float()[0, row.paths[1]]
        try:
            states = hidden_states_at(model, -1, **inputs).float()[0, row.paths[1]]
        except (ValueError, RuntimeError, IndexError, TypeError):
            return False
    return hides_others(model, states, expected, leaking)
