"""In which precision things are computed: the accumulator, the floor under a norm, no autocast."""

from __future__ import annotations

import contextlib

import torch

NORM_FLOOR = 1e-12  # x / max(||x||, NORM_FLOOR), as torch.nn.functional.normalize does


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """The dtype of sums and losses: float64 for float64, float32 for everything else."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def without_autocast(device_type: str) -> contextlib.AbstractContextManager[object]:
    """Autocast would run float32 products in 16 bits: of composite ops, and of a backward pass."""
    if torch.is_autocast_enabled(device_type):
        return torch.autocast(device_type, enabled=False)
    return contextlib.nullcontext()
