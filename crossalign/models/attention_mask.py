"""Prepared attention masks: who may look at whom, in the form that a model adds or selects by.

Shapes: B rows, T tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from crossalign.models.hidden_states import text_config


def mask_dtype(model: Any) -> torch.dtype:
    """bool where attention selects by the mask (sdpa); else the dtype of the weights: added to the
    scores, a mask of booleans would add 1 where it forbids nothing."""
    attention = str(getattr(text_config(model), "_attn_implementation", "eager"))
    return torch.bool if attention == "sdpa" else floating_dtype(model)


def prepared_mask(is_seen: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, 1, T, T) of is_seen (B, T, T) bool: whether position t looks at position u."""
    if dtype == torch.bool:
        return is_seen[:, None]
    mask = torch.zeros(is_seen.shape, dtype=dtype, device=is_seen.device)
    return mask.masked_fill_(~is_seen, torch.finfo(dtype).min)[:, None]


def floating_dtype(model: nn.Module) -> torch.dtype:
    """Of the first weights that are floating-point numbers."""
    return next(each.dtype for each in model.parameters() if each.is_floating_point())


def hides_others(model: nn.Module, states: Tensor, alone: Tensor, leaking: Tensor) -> bool:
    """Whether a text has the states that it has alone, measured against those that it has where
    nothing hides the texts beside it. float32, one shape."""
    error, leak = (states - alone).abs().max(), (leaking - alone).abs().max()
    # Far above the noise of the dtype, far below what a single layer's leak makes.
    tolerance = 1e-3 if floating_dtype(model).itemsize >= 4 else 0.1
    return bool(error <= tolerance * leak)
