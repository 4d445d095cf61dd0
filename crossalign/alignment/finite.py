"""Numbers that are NaN or infinite are named, not trained on and not saved."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

_CHECKED = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class NotFiniteError(RuntimeError):
    """Weights, or the loss or the gradients of a step, are not finite."""


def check_finite_weights(model: Any, weights: Mapping[str, Tensor] | None = None) -> None:
    """Looks at the model's parameters, or at these weights in place of them.

    Raises:
        NotFiniteError: names the first weight that holds NaN or infinite values, and how many.
    """
    if weights is None:
        weights = dict(model.named_parameters())
    for name, weight in weights.items():
        if weight.dtype not in _CHECKED or weight.numel() == 0:
            continue
        weight = weight.detach()
        # Its largest magnitude is NaN where one value is, and no copy is made to find it.
        if not bool(torch.linalg.vector_norm(weight, torch.inf).isfinite()):
            wrong = weight.numel() - int(weight.isfinite().sum())
            raise NotFiniteError(
                f"align: {name} of the model must be finite, but {wrong} of its {weight.numel()} "
                "values are NaN or infinite; take the weights of an earlier checkpoint"
            )
