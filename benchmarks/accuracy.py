"""How far a result is from the truth; decides whether an implementation may be timed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

# An implementation may be this many times as wrong as plain PyTorch in the same dtype: the largest
# error of any row is the noise of one row, and another order of summation moves it by two or three.
PLAIN_FACTOR = 4.0
EPS_FACTOR = 4.0


class Verdict(NamedTuple):
    """Largest relative error against the reference, and how large it may be."""

    error: float
    allowed: float


def allowed_error(plain_error: float, dtype: torch.dtype) -> float:
    return PLAIN_FACTOR * plain_error + EPS_FACTOR * torch.finfo(dtype).eps


def relative_error(got: Sequence[Tensor], truth: Sequence[Tensor]) -> float:
    """Largest error of any row of any tensor; truth in float64.

    The norm of a row's error over that of the row, or of the average row where that is larger: one
    lost row among many gives about 1, a row of rounding noise does not. NaN gives infinity.
    """
    worst = 0.0
    for one, other in zip(got, truth, strict=True):
        rows = other.double().reshape(other.shape[0] if other.dim() else 1, -1)
        norms = rows.norm(dim=1)
        scale = norms.clamp_min(float(norms.square().mean().sqrt())).clamp_min(1e-30)
        errors = (one.double().reshape(rows.shape) - rows).norm(dim=1) / scale
        worst = max(worst, float(errors.nan_to_num(nan=float("inf")).max()))
    return worst
