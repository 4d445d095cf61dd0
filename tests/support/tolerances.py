"""The error rule of benchmarks/accuracy.py, asserted element by element.

Where a row's elements share one error, as behind an exponential or a projection that cancels, the
plain result is a single draw of it and can be exact by luck. Then `plain` is several results that
are as good as float32 makes them, and of each row the largest error counts.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from benchmarks.accuracy import element_bounds


def assert_within_rule(
    kernel: Tensor, truth: Tensor, plain: Tensor | Sequence[Tensor], what: str = "result"
) -> None:
    """kernel, plain: output dtype; truth: float64. Rows are the first dimension."""
    plains = [plain] if isinstance(plain, Tensor) else plain
    shapes = {tuple(tensor.shape) for tensor in (kernel, truth, *plains)}
    assert len(shapes) == 1, shapes
    if truth.numel() == 0:
        return
    rows = (1, -1) if truth.dim() == 0 else (truth.shape[0], -1)
    kernel_rows, truth_rows, *plain_rows = (
        tensor.double().reshape(rows) for tensor in (kernel, truth, *plains)
    )
    error = (kernel_rows - truth_rows).abs()
    bound = element_bounds(truth_rows, plain_rows, torch.finfo(kernel.dtype).eps)
    bad = ~(error <= bound)
    if bool(bad.any()):
        row, column = (int(i) for i in bad.nonzero()[0])
        raise AssertionError(
            f"{what}: {int(bad.sum())} of {bad.numel()} elements outside the rule; first at row "
            f"{row}, column {column}: got {kernel_rows[row, column]:.9g}, truth "
            f"{truth_rows[row, column]:.9g}, plain {plain_rows[0][row, column]:.9g}, "
            f"error {error[row, column]:.3g}, bound {bound[row, column]:.3g}"
        )
