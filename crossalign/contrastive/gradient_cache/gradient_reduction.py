"""Which modules reduce gradients across processes, and keeping them from it for a while."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.nn.parallel import DistributedDataParallel


@contextmanager
def without_reduction(
    modules: Iterable[Any] | None, found: dict[Any, bool] | None = None
) -> Iterator[None]:
    """The modules reduce no gradients; None: nor does a DistributedDataParallel module that runs.

    found: gets the modules that were kept from it, and whether they would have reduced: not so
    where the caller accumulates gradients under no_sync.
    """
    found = {} if found is None else found

    def enter(module: Any, _: object = None) -> None:
        if module not in found:
            found[module] = getattr(module, "require_backward_grad_sync", True)
            stack.enter_context(module.no_sync())

    def enter_parallel(module: nn.Module, _: object) -> None:
        if isinstance(module, DistributedDataParallel):
            enter(module)

    with ExitStack() as stack:
        for module in modules or ():
            enter(module)
        if modules is None and dist.is_available() and dist.is_initialized():
            # torch.compile says that it runs such hooks twice, which does no harm here.
            stack.enter_context(warnings.catch_warnings())
            warnings.filterwarnings("ignore", "Using `torch.compile")
            stack.enter_context(register_module_forward_pre_hook(enter_parallel))
        yield


def awaited_parameters(module: Any) -> list[Tensor]:
    """What a module waits for before it reduces, that an earlier backward may have reached.

    DistributedDataParallel reduces once every parameter had a gradient since its last forward,
    unless it looks for those that will have none.
    """
    if getattr(module, "find_unused_parameters", True):
        return []
    return [each for each in module.parameters() if each.requires_grad and each.grad is not None]
