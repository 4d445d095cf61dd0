"""What a check is given and what it finds: how far the worst row of a result is from the truth."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from crossalign.backends import Backend

# The largest error of a row, relative to the row: roundings of the dtype, of the gradient matrix
# that the kernels round to it, and of a softmax at temperature 0.05, which multiplies them by 20.
LIMITS = {
    torch.float64: 1e-9,
    torch.float32: 1e-3,
    torch.float16: 1e-2,
    torch.bfloat16: 6e-2,
}


class Place(NamedTuple):
    """Where a check runs, and how large it is."""

    backend: Backend
    device: str
    is_small: bool  # the interpreter takes a second for what a GPU does in a microsecond


class Finding(NamedTuple):
    """The worst of what a check compared."""

    error: float
    limit: float
    where: str


def worst(pairs: Mapping[str, tuple[Tensor, Tensor]], dtype: torch.dtype) -> Finding:
    """Of (result, truth) by name: the row that is furthest off, relative to the truth's row.

    By row, because one lost row of 65,536 vanishes in an average. Rows of next to nothing count
    relative to a hundredth of the largest row.
    """
    finding = Finding(0.0, LIMITS[dtype], "")
    for name, (result, truth) in pairs.items():
        got, expected = (
            x.detach().double().reshape(len(x) if x.dim() else 1, -1)
            for x in (result, truth.to(result.device))
        )
        size = expected.norm(dim=1)
        floor = float(size.max()) / 100 if len(size) else 0.0
        errors = (got - expected).norm(dim=1) / size.clamp_min(max(floor, 1e-30))
        errors = torch.where(errors.isnan(), torch.inf, errors)
        if len(errors) and float(errors.max()) >= finding.error:
            row = int(errors.argmax())
            finding = finding._replace(error=float(errors.max()), where=f"{name}, row {row}")
    return finding


def assert_same_bits(runs: list[list[Tensor]], what: str) -> Finding:
    """Every run gives the bits of the first; the error counts the tensors that do not."""
    differing = sum(
        not torch.equal(one, first)
        for run in runs[1:]
        for one, first in zip(run, runs[0], strict=True)
    )
    return Finding(float(differing), 0.0, what)
