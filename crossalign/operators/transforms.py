"""Who watches or transforms a call: torch.compile, fake tensors, the transforms of torch.func."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_in_torch_dispatch_mode


def ops_are_watched() -> bool:
    """Whether operations are recorded or replaced: by torch.compile, or for fake tensors."""
    return torch.compiler.is_compiling() or is_in_torch_dispatch_mode()


def transforms_are_active() -> bool:
    """Whether torch.func transforms this call: grad, vjp, jacrev, vmap, and what they make up."""
    if torch.compiler.is_compiling():
        return False
    is_active: bool = torch._C._are_functorch_transforms_active()
    return is_active


def is_batched(tensor: Tensor) -> bool:
    """Whether torch.vmap, at any level, makes this one tensor stand for several."""
    return transforms_are_active() and any(
        torch._C._functorch.is_batchedtensor(each) for each in _levels(tensor)
    )


def requires_gradient(tensor: Tensor) -> bool:
    """tensor.requires_grad, at any level of nested transforms."""
    if tensor.requires_grad:
        return True
    return transforms_are_active() and any(each.requires_grad for each in _levels(tensor))


def _levels(tensor: Tensor) -> list[Tensor]:
    """The tensor as each transform wraps it, outermost first."""
    levels = [tensor]
    while torch._C._functorch.is_functorch_wrapped_tensor(levels[-1]):
        levels.append(torch._C._functorch.get_unwrapped(levels[-1]))
    return levels
