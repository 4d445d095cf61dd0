"""GradientCache called inside DistributedDataParallel, as a trainer does: factors, accumulation."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from crossalign.contrastive.gradient_cache import GradientCache
from tests.support.gradient_cache_cases import (
    FEATURES,
    ROWS,
    assert_equal_gradients,
    count_reductions,
    gradients,
    make_encoder,
    rows,
    summed_loss,
)
from tests.support.process_group import run_ranks

FACTOR = 3.0


class Router(nn.Module):
    """Two towers in one module: features say which of them embeds them."""

    def __init__(self) -> None:
        super().__init__()
        self.towers = nn.ModuleDict(
            {"query": make_encoder(dropout=0.0), "document": nn.Linear(FEATURES, 5).double()}
        )

    def forward(self, features: dict[str, Tensor | str]) -> Tensor:
        return self.towers[str(features["task"])](features["x"])


def sides_of(rank: int | None) -> list[dict[str, Tensor | str]]:
    """Of one rank, with 5 or 2 of the pairs; None: all of them. The negatives are every rank's."""
    own = {0: slice(0, 5), 1: slice(5, ROWS), None: slice(None)}[rank]
    return [
        {"task": "query", "x": rows()[own]},
        {"task": "document", "x": rows(seed=2)[own]},
        {"task": "document", "x": rows(3, seed=3)},
    ]


def _router_of_rank(
    rank: int, find_unused: bool, accumulated: int
) -> tuple[list[Tensor | None], int]:
    torch.manual_seed(0)
    router = Router()
    parallel = DistributedDataParallel(router, find_unused_parameters=find_unused)
    sizes = count_reductions(parallel)
    cache = GradientCache(parallel, summed_loss, 2)
    for _ in range(2):  # the second step meets whatever state the first one left
        router.zero_grad()
        sizes.clear()
        for step in range(accumulated):
            waits = step < accumulated - 1
            with parallel.no_sync() if waits else nullcontext():
                loss = cache(*sides_of(rank))
            (FACTOR * loss / accumulated).backward()
    return gradients(router), sum(sizes)


def expected_gradients() -> tuple[list[Tensor], int]:
    """What one process has, over the number of ranks, and how many elements that is."""
    torch.manual_seed(0)
    router = Router()
    (FACTOR * summed_loss(*map(router, sides_of(None)))).backward()
    found = [gradient / 2 for gradient in gradients(router)]
    return found, sum(gradient.numel() for gradient in found)


def test_a_router_reduces_both_towers_once_under_any_factor() -> None:
    theirs, count = expected_gradients()
    for ours, reduced in run_ranks(_router_of_rank, 2, True, 1):
        assert_equal_gradients(ours, theirs)
        assert reduced == count


def test_accumulation_reduces_in_its_last_batch_only() -> None:
    theirs, count = expected_gradients()
    for ours, reduced in run_ranks(_router_of_rank, 2, True, 3):
        assert_equal_gradients(ours, theirs)
        assert reduced == count


def test_towers_need_no_search_for_unused_parameters() -> None:
    """The last chunk meets one tower only, and DistributedDataParallel waited for the other."""
    theirs, count = expected_gradients()
    for ours, reduced in run_ranks(_router_of_rank, 2, False, 1):
        assert_equal_gradients(ours, theirs)
        assert reduced == count
