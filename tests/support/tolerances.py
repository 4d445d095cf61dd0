"""The error rule and its only table.

Truth is the float64 reference on the very same inputs; plain is the reference in float32
arithmetic, rounded to the output dtype. Per row of the output:

    |kernel - truth| <= PLAIN_FACTOR * max|plain - truth| + EPS_FACTOR * eps(output dtype) * |truth|

A bound per row, because one lost row of 65,536 vanishes in an average over the tensor.

Where a row's elements share one error, as behind an exponential or a projection that cancels, the
plain result is a single draw of it and can be exact by luck. Then `plain` is several results that
are as good as float32 makes them, and of each row the largest error counts.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

PLAIN_FACTOR = 4.0
EPS_FACTOR = 2.0


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
    plain_errors = [(result - truth_rows).abs().amax(dim=1, keepdim=True) for result in plain_rows]
    plain_error = torch.stack(plain_errors).amax(dim=0)
    eps = torch.finfo(kernel.dtype).eps
    bound = PLAIN_FACTOR * plain_error + EPS_FACTOR * eps * truth_rows.abs()
    # A row whose plain result happens to be exact leaves no room for another summation order.
    bound = bound + EPS_FACTOR * eps * truth_rows.abs().amax(dim=1, keepdim=True)
    bad = ~(error <= bound)
    if bool(bad.any()):
        row, column = (int(i) for i in bad.nonzero()[0])
        raise AssertionError(
            f"{what}: {int(bad.sum())} of {bad.numel()} elements outside the rule; first at row "
            f"{row}, column {column}: got {kernel_rows[row, column]:.9g}, truth "
            f"{truth_rows[row, column]:.9g}, plain {plain_rows[0][row, column]:.9g}, "
            f"error {error[row, column]:.3g}, bound {bound[row, column]:.3g}"
        )
