"""The error rule and its only table: how far from the truth a result may be.

Truth is the float64 reference on the very same inputs; plain is the reference in float32
arithmetic, rounded to the output dtype. For every element of every row of the output:

    |result - truth| <= PLAIN_FACTOR * max over the row of |plain - truth|
                        + EPS_FACTOR * eps(output dtype) * (|truth| + max over the row of |truth|)

The row's largest value counts because a row whose plain result happens to be exact leaves no room
for another summation order. A bound per row, because one lost row of 65,536 vanishes in an average.

Tests hold every element to it (tests/support/tolerances.py). A benchmark stores one number, the
largest error of a row in norm, and holds that to the same factors: 4 times the plain error, and
EPS_FACTOR twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

# The largest error of a row is the noise of one draw: another summation order moves it by two or
# three.
PLAIN_FACTOR = 4.0
EPS_FACTOR = 2.0


class Verdict(NamedTuple):
    """Largest relative error against the reference, and how large it may be."""

    error: float
    allowed: float


def allowed_error(plain_error: float, dtype: torch.dtype) -> float:
    """The rule for relative_error: that of the plain result, and a row in units of its norm."""
    return PLAIN_FACTOR * plain_error + 2 * EPS_FACTOR * torch.finfo(dtype).eps


def element_bounds(truth_rows: Tensor, plain_rows: Sequence[Tensor], eps: float) -> Tensor:
    """(rows, columns) the rule for each element. plain_rows: results that are all as good as
    float32 makes them; of each row the largest error counts."""
    errors = [(plain - truth_rows).abs().amax(dim=1, keepdim=True) for plain in plain_rows]
    largest = truth_rows.abs().amax(dim=1, keepdim=True)
    rounding = EPS_FACTOR * eps * (truth_rows.abs() + largest)
    return PLAIN_FACTOR * torch.stack(errors).amax(dim=0) + rounding


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
