"""What of a call would be launched on a GPU: Triton's kernels, and PyTorch's operations on numbers.

Counted under the interpreter. Views and allocations launch nothing, nor does what has no elements.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_ALLOCATIONS = ("empty", "new_empty", "empty_like", "empty_strided", "new_empty_strided")


class Launches(TorchDispatchMode):
    """The names of what is launched while it is entered, in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        from triton.runtime import interpreter

        from crossalign.contrastive import combine, one_process
        from crossalign.operators import transforms

        self.names: list[str] = []
        self.is_in_kernel = False
        run = interpreter.GridExecutor.__call__

        def counted_run(executor: Any, *arguments: Any, **named: Any) -> Any:
            self.names.append(executor.fn.__name__)
            self.is_in_kernel = True
            try:
                return run(executor, *arguments, **named)
            finally:
                self.is_in_kernel = False

        monkeypatch.setattr(interpreter.GridExecutor, "__call__", counted_run)
        # On a GPU no value is read to warn of a batch without negatives.
        for module in (combine, one_process):
            monkeypatch.setattr(module, "values_may_be_read", lambda tensor: False)
        # A dispatch mode makes the loss take the path of torch.compile; here it only looks on.
        monkeypatch.setattr(transforms, "is_in_torch_dispatch_mode", lambda: False)

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        if not self.is_in_kernel and _is_launched(function, result):
            self.names.append(function.__name__)
        return result


def _is_launched(function: Any, result: Any) -> bool:
    outputs = [x for x in tree_leaves(result) if isinstance(x, Tensor)]
    if not any(x.numel() for x in outputs):
        return False
    name = function.__name__.split(".")[0]
    views = [each.alias_info for each in function._schema.returns]
    is_view = any(view is not None and not view.is_write for view in views)
    return name not in _ALLOCATIONS and not is_view


def launches_of(call: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    with monkeypatch.context() as patches, Launches(patches) as launches:
        call()
    return launches.names
