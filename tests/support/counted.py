"""What a call costs, counted and not measured: matrix products and the largest allocation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Name -> where its two matrices stand among the arguments.
_PRODUCTS = {"aten::mm": 0, "aten::addmm": 1, "aten::addmm_": 1}


def multiply_adds(call: Callable[[], Any]) -> int:
    """Of all matrix products PyTorch's profiler sees, in custom ops and backward passes too."""
    with torch.autograd.profiler.profile(record_shapes=True) as profile:
        call()
    total = 0
    for event in profile.function_events:
        if event.name in _PRODUCTS:
            first = _PRODUCTS[event.name]
            (rows, inner), (_, columns) = event.input_shapes[first : first + 2]
            total += rows * inner * columns
    return total


class LargestAllocation(TorchDispatchMode):
    """Elements of the largest tensor that an operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        storages = {arg.untyped_storage()._cdata for arg in args if isinstance(arg, Tensor)}
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.untyped_storage()._cdata not in storages:
                self.elements = max(self.elements, tensor.numel())
        return result
