"""The one stream of hidden states that the next block reads, of models that carry several."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def active_stream(hidden: Tensor, model: Any) -> Tensor:
    """(B, T, C). Gemma 3n carries (S, B, T, C), whose `altup_active_idx` its attention reads; after
    the final norm it has one stream, as all others have throughout."""
    if hidden.dim() != 4:
        return hidden
    config = model.config.get_text_config(decoder=True)
    return hidden[int(getattr(config, "altup_active_idx", 0))]
