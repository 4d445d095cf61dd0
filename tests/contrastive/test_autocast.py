"""Autocast around the loss: glue on the host's side runs outside of it, with every half type."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from crossalign import (
    GradientCache,
    NegativeQueue,
    fused_contrastive_loss,
    fused_sigmoid_loss,
    gather_negatives,
    masked_mean_pool,
)
from tests.support.process_group import run_ranks

# torch.cat refuses the half type that autocast does not use.
HALVES = [(torch.float16, torch.bfloat16), (torch.bfloat16, torch.float16)]


def random(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def hard(group: Any, gather: Any = "auto", **options: Any) -> Callable[[Tensor], Tensor]:
    def loss(x: Tensor) -> Tensor:
        negatives = random(3, 4, 8, dtype=x.dtype).requires_grad_()
        return fused_contrastive_loss(
            x, x.detach().cos(), negatives, group=group, gather=gather, **options
        )

    return loss


def sigmoid(group: Any, gather: Any = "auto") -> Callable[[Tensor], Tensor]:
    return lambda x: fused_sigmoid_loss(
        x, x.cos(), temperature=0.1, bias=-1.0, group=group, gather=gather
    )


def pooled(x: Tensor) -> Tensor:
    return masked_mean_pool(x[None], torch.ones(1, len(x))).float().square().sum()


def queued(x: Tensor) -> Tensor:
    queue = NegativeQueue(6)
    for seed in (1, 2):
        queue.push(random(seed, 4, 8, dtype=x.dtype))
    return fused_contrastive_loss(x, x.cos(), queue.negatives)


def cached(x: Tensor) -> Tensor:
    cache = GradientCache(lambda rows: x[rows], fused_contrastive_loss, chunk_size=2)
    return cache(torch.arange(3), torch.arange(2, 5))


ALONE = {
    "directions": hard(None, directions=("query_to_key", "key_to_query", "query_to_query")),
    "symmetric": hard(None, symmetric=True),
    "one pass": hard(None),
    "margin": hard(None, false_negative_margin=0.05),
    "sigmoid": sigmoid(None),
    "pooling": pooled,
    "queue": queued,
    "cache": cached,
}


def taken_gradient(x: Tensor) -> Tensor:
    gradient = x.grad
    assert gradient is not None
    x.grad = None
    return gradient


def assert_autocast_changes_nothing(loss: Callable[[Tensor], Tensor], dtypes: Any) -> None:
    """Neither value nor gradient, wherever backward runs."""
    dtype, autocast = dtypes
    x = random(0, 5, 8, dtype=dtype).requires_grad_()
    value = loss(x)
    value.backward()
    gradient = taken_gradient(x)
    for is_inside in (False, True):
        with torch.autocast("cpu", autocast):
            got = loss(x)
            if is_inside:
                got.backward()
        if not is_inside:
            got.backward()
        assert torch.equal(got, value) and torch.equal(taken_gradient(x), gradient)


@pytest.mark.parametrize("dtypes", [*HALVES, (torch.float32, torch.bfloat16)])
@pytest.mark.parametrize("name", ALONE)
def test_autocast_changes_nothing_in_one_process(
    name: str, dtypes: tuple[torch.dtype, torch.dtype]
) -> None:
    assert_autocast_changes_nothing(ALONE[name], dtypes)


def under_autocast(rank: int) -> None:
    group = dist.group.WORLD
    for dtypes in HALVES:
        for gather in ("all_gather", "ring"):
            assert_autocast_changes_nothing(hard(group, gather, symmetric=True), dtypes)
            assert_autocast_changes_nothing(sigmoid(group, gather), dtypes)
        assert_autocast_changes_nothing(
            lambda x: gather_negatives(x[rank:]).float().square().sum(), dtypes
        )


def test_autocast_changes_nothing_across_ranks() -> None:
    run_ranks(under_autocast, 2)
