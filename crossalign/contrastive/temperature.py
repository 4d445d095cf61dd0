"""A learned temperature: the parameter log(1 / temperature), its bound, and its dtype."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn

from crossalign.argument_checks import check_positive_finite


class LearnsTemperature(nn.Module):
    """Holds `logit_scale`, which stays in float32 when the module is cast to 16 bits.

    A step of an optimizer is below what bfloat16 can add to log(20): there it would stop learning.
    """

    logit_scale: nn.Parameter | None
    max_logit_scale: float

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Self:
        before = self.logit_scale
        kept = None if before is None else (before.data, before.grad)
        super()._apply(fn, recurse)
        after = self.logit_scale
        if after is not None and kept is not None and after.dtype.itemsize < kept[0].dtype.itemsize:
            value, grad = kept
            after.data = value.to(after.device)
            if grad is not None:
                after.grad = grad.to(after.device)
        return self

    def learned_temperature(self, logit_scale: Tensor) -> Tensor:
        """() exp(-min(logit_scale, log(max_logit_scale))), with its gradient."""
        return (-logit_scale.clamp(max=math.log(self.max_logit_scale))).exp()


def start_logit_scale(
    function: str, temperature: float | Tensor, max_logit_scale: float
) -> nn.Parameter:
    """The parameter at its start; above its bound it would have no gradient and never learn."""
    start = float(temperature.detach()) if isinstance(temperature, Tensor) else temperature
    check_positive_finite(function, "temperature", start)
    start = float(start)
    if 1 / start > max_logit_scale * (1 + 1e-6):
        raise ValueError(
            f"{function}: temperature={start} starts below 1 / max_logit_scale = "
            f"{1 / max_logit_scale:g}, where it gets no gradient; use a higher temperature or a "
            f"max_logit_scale above {1 / start:g} (now {max_logit_scale:g})"
        )
    return nn.Parameter(torch.tensor(-math.log(start)))
