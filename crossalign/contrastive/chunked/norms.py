"""Norms of rows in plain PyTorch, and the gradient through the division by them."""

from __future__ import annotations

import torch
from torch import Tensor

from crossalign.precision import NORM_FLOOR, accumulator, norm_divisor


def inverse_norms(x: Tensor) -> Tensor:
    """(n, D) -> (n,) 1 / max(||x||, 1e-12) in the accumulator dtype; NaN where that overflows."""
    norms: Tensor = torch.linalg.vector_norm(x, dim=1, dtype=accumulator(x.dtype))
    return norm_divisor(norms).reciprocal()


def normalize_backward(grad_unit: Tensor, x: Tensor, inverse_norm: Tensor) -> Tensor:
    """Gradient of x given that of x / max(||x||, floor): (g - u <u, g>) / ||x||, u the unit row."""
    unit = x.to(grad_unit.dtype) * inverse_norm[:, None]
    # Below the floor the divisor is a constant, so nothing is projected away.
    projected = (unit * grad_unit).sum(1, keepdim=True)
    projected = projected.masked_fill(inverse_norm[:, None] >= 1 / NORM_FLOOR, 0)
    return unit.mul_(-projected).add_(grad_unit).mul_(inverse_norm[:, None])
