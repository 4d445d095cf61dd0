"""In which precision things are computed: the accumulator, the floor under a norm, no autocast."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import torch
from torch import Tensor

NORM_FLOOR = 1e-12  # x / max(||x||, NORM_FLOOR), as torch.nn.functional.normalize does


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """The dtype of sums and losses: float64 for float64, float32 for everything else."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def norm_divisor(norm: Tensor) -> Tensor:
    """What a vector of this norm is divided by: max(norm, floor), and NaN where the norm overflows.

    Divided by infinity the vector would be zeros, and look healthy.
    """
    return norm.clamp_min(NORM_FLOOR).masked_fill(norm == torch.inf, torch.nan)


def without_autocast(device_type: str) -> contextlib.AbstractContextManager[object]:
    """Autocast would run float32 products in 16 bits: of composite ops, and of a backward pass."""
    if torch.is_autocast_enabled(device_type):
        return torch.autocast(device_type, enabled=False)
    return contextlib.nullcontext()


def concatenated(parts: Sequence[Tensor], dim: int = 0) -> Tensor:
    """torch.cat, which under autocast refuses the half type that autocast does not use."""
    with without_autocast(parts[0].device.type):
        return torch.cat(list(parts), dim)
