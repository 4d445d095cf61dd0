"""Inputs of an encoder, whatever holds them, in chunks of rows without needless padding.

Tensors, mappings, lists and tuples may be nested; every tensor whose first dimension is the batch
is cut, and everything else (a string, a number, a tensor of another size) goes into every chunk.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

MASK = "attention_mask"
# Inputs of Hugging Face models with one entry per token. Another tensor as wide as the mask may
# hold tokens or features: which, its shape does not tell.
PER_TOKEN = frozenset(
    {
        *(MASK, "input_ids", "inputs_embeds", "labels", "mm_token_type_ids", "position_ids"),
        *("special_tokens_mask", "token_type_ids"),
    }
)


class _Cut(NamedTuple):
    """One chunk of a batch."""

    number: int
    rows: slice


def count_rows(name: str, inputs: Any) -> int:
    """The batch's size: of an attention mask if there is one, else of the first tensor.

    Raises:
        TypeError: there is no tensor with a first dimension.
        ValueError: there is nothing at all.
    """
    tensors = [tensor for tensor in _tensors(inputs) if tensor.dim() > 0]
    masks = [mask for mask in _masks(inputs) if mask.dim() > 0]
    if tensors:
        return int((masks or tensors)[0].shape[0])
    if isinstance(inputs, Mapping):
        if not inputs:
            raise ValueError(
                f"GradientCache: {name} must hold at least one tensor, got an empty "
                f"{type(inputs).__name__}"
            )
        key, inputs = next(iter(inputs.items()))
        name = f"{name}[{key!r}]"
    raise TypeError(
        f"GradientCache: {name} must be a tensor whose first dimension is the batch, or hold one, "
        f"got {'a 0-d tensor' if isinstance(inputs, Tensor) else type(inputs).__name__}"
    )


def split_rows(inputs: Any, rows: int, size: int, *, trim: bool) -> list[Any]:
    """Chunks of `size` rows, the last one of what is left; no rows make one empty chunk.

    trim: leave out columns that are padding in all rows of a chunk. Padding on the left is left
    out only where position_ids say what position each token has, since the model would otherwise
    count from the first column.
    """
    starts = range(0, max(rows, 1), size)
    cuts = [_Cut(index, slice(start, start + size)) for index, start in enumerate(starts)]
    columns: dict[int, list[slice]] = {}
    if trim and len(cuts) > 1:  # one chunk is as long as its longest row already
        for mapping in _mappings(inputs):
            if _may_be_trimmed(mapping, rows):
                columns[id(mapping)] = _columns_in_use(mapping, cuts)
    return [_cut(inputs, rows, cut, columns) for cut in cuts]


def _cut(value: Any, rows: int, cut: _Cut, columns: Mapping[int, list[slice]]) -> Any:
    if isinstance(value, Tensor):
        return value[cut.rows] if value.dim() and value.shape[0] == rows else value
    if isinstance(value, Mapping):
        parts = {name: _cut(part, rows, cut, columns) for name, part in value.items()}
        if id(value) in columns:
            kept = columns[id(value)][cut.number]
            parts |= {
                name: part[:, kept] for name, part in parts.items() if _is_per_token(name, value)
            }
        if isinstance(value, dict) or not isinstance(value, MutableMapping):
            return parts
        like = copy.copy(value)  # a BatchEncoding stays one
        like.update(parts)
        return like
    if isinstance(value, list | tuple):
        items = [_cut(part, rows, cut, columns) for part in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value


def _may_be_trimmed(mapping: Mapping[Any, Any], rows: int) -> bool:
    mask = mapping.get(MASK)
    if not isinstance(mask, Tensor) or mask.dim() != 2 or mask.shape[0] != rows:
        return False
    return all(
        _is_per_token(name, mapping)
        for name, tensor in mapping.items()
        if isinstance(tensor, Tensor) and tensor.shape[:2] == mask.shape
    )


def _is_per_token(name: Any, mapping: Mapping[Any, Any]) -> bool:
    tensor = mapping[name]
    is_tensor = isinstance(tensor, Tensor) and name in PER_TOKEN
    return is_tensor and tensor.shape[:2] == mapping[MASK].shape


def _columns_in_use(mapping: Mapping[Any, Any], cuts: list[_Cut]) -> list[slice]:
    """Per chunk, the columns from its first to its last token; the host waits once for all."""
    mask = mapping[MASK] != 0
    width = mask.shape[1]
    used = torch.stack([mask[cut.rows].any(0) for cut in cuts])  # [chunk, column]
    column = torch.arange(width, device=mask.device)
    last = torch.where(used, column, -1).amax(1) if width else used.new_zeros(len(cuts))
    first = torch.where(used, column, width).amin(1) if width else last
    if "position_ids" not in mapping:
        first = torch.zeros_like(first)
    ends = torch.stack([first, last + 1], 1).tolist()
    return [slice(start, stop) if start < stop else slice(0, 1) for start, stop in ends]


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors(part)


def _mappings(value: Any) -> Iterator[Mapping[Any, Any]]:
    if isinstance(value, Mapping):
        yield value
    if isinstance(value, Mapping | list | tuple):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _mappings(part)


def _masks(inputs: Any) -> Iterator[Tensor]:
    for mapping in _mappings(inputs):
        if isinstance(mapping.get(MASK), Tensor):
            yield mapping[MASK]
