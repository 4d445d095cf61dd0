"""Timings on a CPU by pytest-benchmark: `make benchmark-cpu`. Otherwise each runs once, untimed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.bench_pooling import Case as PoolingCase
from benchmarks.bench_pooling import implementation as pooling_implementation
from benchmarks.bench_pooling import make_inputs as make_pooling_inputs
from benchmarks.contrastive_cases import Case, make_inputs
from benchmarks.contrastive_implementations import implementation
from crossalign.contrastive.loss import fused_contrastive_loss

CPU = torch.device("cpu")


def forward_and_backward(call: Callable[[Any], Tensor], inputs: Any, leaves: list[Tensor]) -> None:
    value = call(inputs)
    for grad in torch.autograd.grad(value, leaves, torch.ones_like(value)):
        assert torch.isfinite(grad).all()


@pytest.mark.parametrize("name", ["crossalign", "eager"])
@pytest.mark.parametrize("symmetric", [False, True], ids=["one-direction", "symmetric"])
def test_contrastive_loss(benchmark: Any, name: str, symmetric: bool) -> None:
    case = Case("cpu", 2048, 256, (name,), "float32", symmetric)
    inputs = make_inputs(case, CPU)
    benchmark(forward_and_backward, implementation(name, symmetric), inputs, inputs.leaves)


@pytest.mark.parametrize("name", ["crossalign", "eager"])
@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_mean_pooling(benchmark: Any, name: str, layout: str) -> None:
    inputs = make_pooling_inputs(PoolingCase("cpu", layout, 16, 128, 256, "float32"), CPU)
    benchmark(forward_and_backward, pooling_implementation(name, layout), inputs, [inputs.hidden])


def test_smallest_call(benchmark: Any) -> None:
    """What one call costs whatever its size: checks, op dispatch, a few small tensors."""
    query, key = (F.normalize(torch.randn(4, 8)) for _ in "qk")
    loss = benchmark(fused_contrastive_loss, query, key)
    assert torch.isfinite(loss)
