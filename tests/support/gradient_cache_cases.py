"""Encoders, batches and gradients that the tests of GradientCache share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

ROWS, FEATURES = 7, 6


class Encoder(nn.Module):
    """Two layers with dropout; takes a tensor, or a dict with the tensors x and shift."""

    def __init__(self, dropout: float = 0.3) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(FEATURES, 12), nn.Tanh(), nn.Dropout(dropout), nn.Linear(12, 5)
        )

    def forward(self, inputs: Tensor | dict[str, Tensor]) -> Tensor:
        if isinstance(inputs, dict):
            inputs = inputs["x"] + inputs["shift"]
        return self.body(inputs)


def make_encoder(dropout: float = 0.3) -> Encoder:
    torch.manual_seed(0)
    return Encoder(dropout).double()


def rows(count: int = ROWS, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, FEATURES, dtype=torch.float64, generator=generator)


def gradients(*modules: nn.Module) -> list[Any]:
    """Tensors; None for a parameter without a gradient."""
    return [parameter.grad for module in modules for parameter in module.parameters()]


def assert_equal_gradients(ours: Sequence[Tensor | None], theirs: Sequence[Tensor | None]) -> None:
    assert any(gradient is not None and gradient.abs().max() > 1e-6 for gradient in theirs)
    for mine, other in zip(ours, theirs, strict=True):
        assert (mine is None) == (other is None)
        if mine is not None:
            torch.testing.assert_close(mine, other, rtol=1e-12, atol=1e-14)


def count_reductions(module: DistributedDataParallel) -> list[int]:
    """A list that gets the size of every bucket that the module all-reduces."""
    sizes: list[int] = []

    # DistributedDataParallel wants the class itself as annotation, or none.
    def hook(_, bucket):  # type: ignore[no-untyped-def]
        sizes.append(bucket.buffer().numel())
        buffer = bucket.buffer().div_(dist.get_world_size())
        future = dist.all_reduce(buffer, async_op=True).get_future()
        return future.then(lambda done: done.value()[0])

    module.register_comm_hook(None, hook)
    return sizes


def summed_loss(query: Tensor, key: Tensor, negatives: Tensor) -> Tensor:
    """A sum over pairs, so that the ranks' average times their number is the whole."""
    return ((query - key).square().sum(1) + (query @ negatives.T).exp().sum(1)).sum()
