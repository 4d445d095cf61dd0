"""How fast the loss is here, beside the same loss in plain PyTorch and a bare matrix product."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from crossalign.contrastive.loss import fused_contrastive_loss

# (pairs, features, dtype): large enough to be busy, small enough for plain PyTorch's N x N.
SIZES = {"cpu": (2048, 256, torch.float32), "cuda": (8192, 1024, torch.bfloat16)}
REPEATS = 7


def measure_speed(device: str) -> dict[str, object]:
    """Medians of interleaved runs, in milliseconds; forward and backward together."""
    pairs, features, dtype = SIZES[device]
    query, key = (
        torch.randn(pairs, features, device=device).to(dtype).requires_grad_() for _ in range(2)
    )

    def step(loss: Callable[[], Tensor]) -> Callable[[], object]:
        return lambda: torch.autograd.grad(loss(), [query, key])

    size = 8 * features
    square = torch.randn(size, size, device=device).to(dtype)
    calls: dict[str, Callable[[], object]] = {"product": lambda: square @ square}
    for name, symmetric in (("one way", False), ("symmetric", True)):
        calls[f"ours, {name}"] = step(
            lambda s=symmetric: fused_contrastive_loss(query, key, symmetric=s)  # type: ignore[misc]
        )
        calls[f"eager, {name}"] = step(lambda s=symmetric: _eager(query, key, s))  # type: ignore[misc]
    milliseconds = _medians(calls, device)
    ceiling = 2 * size**3 / milliseconds["product"] / 1e9
    rows = {}
    for name in ("one way", "symmetric"):
        ours, eager = milliseconds[f"ours, {name}"], milliseconds[f"eager, {name}"]
        # The logits, and one product for each side's gradient: what the loss cannot do without.
        tflops = 6 * pairs * pairs * features / ours / 1e9
        rows[name] = {"ours_ms": ours, "eager_ms": eager, "share_of_product": tflops / ceiling}
    return {
        "pairs": pairs,
        "features": features,
        "dtype": str(dtype).removeprefix("torch."),
        "product_tflops": ceiling,
        "rows": rows,
    }


def _eager(query: Tensor, key: Tensor, symmetric: bool) -> Tensor:
    logits = F.normalize(query, dim=1) @ F.normalize(key, dim=1).T / 0.05
    labels = torch.arange(len(query), device=query.device)
    loss = F.cross_entropy(logits.float(), labels)
    return (loss + F.cross_entropy(logits.T.float(), labels)) / 2 if symmetric else loss


def _medians(calls: dict[str, Callable[[], object]], device: str) -> dict[str, float]:
    """Interleaved, so that what else the machine does affects all of them alike."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for repeat in range(1 + REPEATS):
        for name, call in calls.items():
            _wait(device)
            start = time.perf_counter()
            call()
            _wait(device)
            if repeat:  # the first warms up
                times[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in times.items()}


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
