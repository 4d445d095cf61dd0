"""Parts of the model that are not trained: no gradient is formed for them, no moments are kept."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn

from crossalign.alignment.config import FROZEN_BLOCKS
from crossalign.models.hidden_states import find_blocks

logger = logging.getLogger("crossalign")


def freeze(model: Any, parts: Sequence[str]) -> None:
    """Takes requires_grad from the parameters of these parts; blocks are counted from 1.

    Raises:
        ValueError: the model has no such block, or no head.
    """
    for part in parts:
        for module in _modules_of(model, part):
            module.requires_grad_(False)
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    named = {"embeddings", "head"}.intersection(parts)
    if len(named) == 1 and head is not None and head.weight is embedding.weight:
        logger.info("the head is tied to the embeddings, so both are frozen")


def _modules_of(model: Any, part: str) -> Iterable[nn.Module]:
    if part == "embeddings":
        return [model.get_input_embeddings()]
    if part == "head":
        if model.get_output_embeddings() is None:
            raise ValueError(f"align: freeze head: {type(model).__name__} has no output embedding")
        return [model.get_output_embeddings()]
    found = FROZEN_BLOCKS.fullmatch(part)
    assert found is not None, part
    blocks = find_blocks(model)[1]
    first = int(found[1])
    last = first if found[2] is None else int(found[3] or len(blocks))
    if not first <= last <= len(blocks):
        raise ValueError(
            f"align: freeze {part} must name blocks from 1 to {len(blocks)}, which the model has"
        )
    return blocks[first - 1 : last]
