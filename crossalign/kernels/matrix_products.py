"""The library's matrix product with float32 sums, which the gradients are made of."""

from __future__ import annotations

import torch
from torch import Tensor


def accumulate(total: Tensor, left: Tensor, right: Tensor, is_first: bool) -> None:
    """total += left @ right, float32 sums of 16-bit operands; the first product overwrites."""
    # With another shape PyTorch would resize a view, and the sum would go nowhere.
    assert total.shape == (left.shape[0], right.shape[1]), (total.shape, left.shape, right.shape)
    if left.dtype == total.dtype:
        torch.addmm(total, left, right, beta=0 if is_first else 1, out=total)
    elif left.is_cuda:
        torch.addmm(total, left, right, torch.float32, beta=0 if is_first else 1, out=total)
    else:  # the interpreter: PyTorch has no mixed product on the CPU
        torch.addmm(total, left.float(), right.float(), beta=0 if is_first else 1, out=total)
