"""The error rule and its only table.

Truth is the float64 reference on the very same inputs; plain is the reference in float32
arithmetic, rounded to the output dtype. Per row of the output:

    |kernel - truth| <= PLAIN_FACTOR * max|plain - truth| + EPS_FACTOR * eps(output dtype) * |truth|

A bound per row, because one lost row of 65,536 vanishes in an average over the tensor.
"""

from __future__ import annotations

import torch
from torch import Tensor

PLAIN_FACTOR = 4.0
EPS_FACTOR = 2.0


def assert_within_rule(kernel: Tensor, truth: Tensor, plain: Tensor, what: str = "result") -> None:
    """kernel, plain: output dtype; truth: float64. Rows are the first dimension."""
    assert kernel.shape == truth.shape == plain.shape, (kernel.shape, truth.shape, plain.shape)
    if truth.numel() == 0:
        return
    rows = (1, -1) if truth.dim() == 0 else (truth.shape[0], -1)
    kernel_rows, truth_rows, plain_rows = (
        tensor.double().reshape(rows) for tensor in (kernel, truth, plain)
    )
    error = (kernel_rows - truth_rows).abs()
    plain_error = (plain_rows - truth_rows).abs().amax(dim=1, keepdim=True)
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
            f"{truth_rows[row, column]:.9g}, plain {plain_rows[row, column]:.9g}, "
            f"error {error[row, column]:.3g}, bound {bound[row, column]:.3g}"
        )
