"""Which checks run where: the PyTorch passes on a CPU, the kernels interpreted or on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from crossalign.check.finding import Finding, Place
from crossalign.check.loss_checks import (
    OPTIONS,
    check_loss,
    check_options,
    check_repeatability,
    check_sigmoid,
)
from crossalign.check.other_checks import (
    check_few_programs,
    check_graph,
    check_mixed_product,
    check_pooling,
)

Catalog = dict[str, Callable[[Place], Finding]]


def catalog(place: Place) -> Catalog:
    """What to run at a place, by name, in order; the names hold the dtype."""
    if place.device == "cpu":
        checks = _everywhere(torch.float32)
        if place.backend == "torch":
            checks["loss, bfloat16"] = partial(check_loss, dtype=torch.bfloat16)
            checks["loss, float64"] = partial(check_loss, dtype=torch.float64, symmetric=True)
        return checks
    if place.backend == "torch":  # float64 takes PyTorch on a GPU too
        return {"loss, float64": partial(check_loss, dtype=torch.float64, pairs=3000, features=64)}
    checks = {"mixed product": check_mixed_product}
    checks |= _everywhere(torch.bfloat16)
    wide = partial(check_loss, dtype=torch.bfloat16, symmetric=True, pairs=9000, features=4096)
    checks["loss, 4,096 features"] = wide
    for dtype in (torch.float16, torch.float32):
        name = str(dtype).removeprefix("torch.")
        checks[f"loss, {name}"] = partial(
            check_loss, dtype=dtype, symmetric=True, pairs=9001, features=200
        )
        checks[f"sigmoid loss, {name}"] = partial(check_sigmoid, dtype=dtype)
        checks[f"pooling, {name}"] = partial(check_pooling, dtype=dtype)
    for option in OPTIONS:
        checks[f"{option}, float32"] = partial(check_options, name=option, dtype=torch.float32)
    checks["captured graph"] = partial(check_graph, dtype=torch.bfloat16)
    checks["three programs"] = partial(check_few_programs, dtype=torch.bfloat16)
    return checks


def _everywhere(dtype: torch.dtype) -> Catalog:
    checks: Catalog = {
        "loss, one way": partial(check_loss, dtype=dtype),
        "loss, symmetric": partial(check_loss, dtype=dtype, symmetric=True),
        "loss, learned temperature": partial(
            check_loss, dtype=dtype, symmetric=True, learned=True, temperature=0.02
        ),
    }
    for option in OPTIONS:
        checks[option] = partial(check_options, name=option, dtype=dtype)
    checks["sigmoid loss"] = partial(check_sigmoid, dtype=dtype)
    checks["pooling"] = partial(check_pooling, dtype=dtype)
    checks["same bits"] = partial(check_repeatability, dtype=dtype)
    return checks
