"""How much matrix multiplication a call does, counted by PyTorch's profiler."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

# Name -> where its two matrices stand among the arguments.
_PRODUCTS = {"aten::mm": 0, "aten::addmm": 1, "aten::addmm_": 1}


def multiply_adds(call: Callable[[], Any]) -> int:
    """Of all matrix products of PyTorch's, inside of custom ops and of backward passes too."""
    with torch.autograd.profiler.profile(record_shapes=True) as profile:
        call()
    total = 0
    for event in profile.function_events:
        if event.name in _PRODUCTS:
            first = _PRODUCTS[event.name]
            (rows, inner), (_, columns) = event.input_shapes[first : first + 2]
            total += rows * inner * columns
    return total
