"""fused_contrastive_loss(group=...) in real processes against the reference on the whole batch."""

from __future__ import annotations

import os
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from crossalign import fused_contrastive_loss, reference
from crossalign.contrastive.across_ranks import ring, ring_pass
from crossalign.contrastive.across_ranks.shards import block_sums
from crossalign.distributed import symmetric_gather
from tests.support.built_extension import extension_folder, use_extension
from tests.support.distributed_cases import (
    HARD,
    POSITIVE,
    SCHEDULES,
    SUM,
    SYMMETRIC,
    Case,
    Result,
    assert_close,
    assert_equals_one_process,
    assert_within_the_rule,
    cases,
    run_case,
    whole_batch,
)
from tests.support.pooling_cases import needs_interpreter
from tests.support.process_group import run_ranks


def run_cases(rank: int, all_cases: list[Case], backend: str = "auto") -> list[dict[str, Result]]:
    """Each case with both schedules; in float32 twice, which must give the same bits."""
    results = []
    for case in all_cases:
        by_schedule = {gather: run_case(case, rank, gather, backend) for gather in SCHEDULES}
        results.append(by_schedule)
        for gather, result in by_schedule.items():
            if case.dtype != torch.float32:
                continue
            again = run_case(case, rank, gather, backend)
            assert torch.equal(again.loss, result.loss), (case, gather)
            for name, gradient in result.gradients.items():
                assert torch.equal(again.gradients[name], gradient), (case, gather, name)
    return results


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_loss_gradients_and_statistics_equal_one_process(world_size: int) -> None:
    """float64 to 1e-12, float32 to 1e-5 of the largest element, as promised."""
    all_cases = cases(world_size)
    by_rank = run_ranks(run_cases, world_size, all_cases)
    for index, case in enumerate(all_cases):
        for gather in SCHEDULES:
            results = [results[index][gather] for results in by_rank]
            tolerance = 1e-12 if case.dtype == torch.float64 else 1e-5
            assert_equals_one_process(case, results, tolerance)
            if case.arguments.get("reduction") != "none":
                mean = torch.stack([result.loss for result in results]).mean()
                whole, _ = reference.contrastive_loss(**whole_batch(case))
                assert_close(mean, whole, tolerance, case)


NARROW = [
    Case((5, 0, 4), (2, 0, 3), ("negatives", "owner", "weights"), SYMMETRIC | HARD, dtype)
    for dtype in (torch.float32, torch.bfloat16, torch.float16)
]


def test_narrow_dtypes_are_within_the_rule() -> None:
    by_rank = run_ranks(run_cases, 3, NARROW)
    for index, case in enumerate(NARROW):
        for gather in SCHEDULES:
            assert_within_the_rule(case, [results[index][gather] for results in by_rank])


KERNEL_CASES = [
    Case((5, 3), None, ("temperature",), SYMMETRIC, torch.float32),
    Case(
        (0, 6),
        (3, 2),
        ("negatives", "ids", "negative_ids"),
        SYMMETRIC | POSITIVE | SUM,
        torch.float32,
    ),
    Case((4, 0), None, (), SYMMETRIC, torch.float16),
]


@pytest.mark.parametrize("marked", [pytest.param("triton", marks=needs_interpreter)])
def test_triton_kernels_serve_every_rank(marked: str) -> None:
    """With a rank that has no rows, for which there is nothing to launch."""
    by_rank = run_ranks(run_cases, 2, KERNEL_CASES, marked)
    for index, case in enumerate(KERNEL_CASES):
        for gather in SCHEDULES:
            tolerance = 1e-5 if case.dtype == torch.float32 else 5e-3
            assert_equals_one_process(case, [one[index][gather] for one in by_rank], tolerance)


def run_through_extension(rank: int, all_cases: list[Case], folder: Path) -> None:
    """The extension adds in the same order as the collectives: not a bit may differ."""
    use_extension(folder)
    for case in all_cases:
        by_way = []
        for way in ("collective", "extension"):
            os.environ["CROSSALIGN_GATHER"] = way
            by_way.append(run_case(case, rank, "all_gather"))
            assert bool(symmetric_gather._workspaces) == (
                way == "extension" or case != all_cases[0]
            )
        through_collectives, through_extension = by_way
        assert torch.equal(through_collectives.loss, through_extension.loss)
        for name, gradient in through_collectives.gradients.items():
            assert torch.equal(gradient, through_extension.gradients[name]), (case, name)


def test_extension_gathers_to_the_same_bits() -> None:
    run_ranks(run_through_extension, 3, NARROW, extension_folder())


def compiled_loss(rank: int) -> list[bool]:
    # Dynamo looks at .grad of whatever crosses a graph break.
    warnings.filterwarnings("default", message="The .grad attribute of a Tensor that is not a leaf")
    generator = torch.Generator().manual_seed(rank)
    leaves = [torch.randn(rank + 3, 5, generator=generator).requires_grad_() for _ in range(2)]

    def loss(query: Tensor, key: Tensor) -> Tensor:
        return fused_contrastive_loss(query.sin(), key.sin(), group=dist.group.WORLD)

    results = []
    for function in (loss, torch.compile(loss, backend="eager")):
        value = function(*leaves)
        results.append([value, *torch.autograd.grad(value, leaves)])
    return [torch.equal(one, other) for one, other in zip(*results, strict=True)]


def test_compiled_function_breaks_its_graph_and_stays_right() -> None:
    assert run_ranks(compiled_loss, 2) == [[True] * 3] * 2


def arrives_beside_the_products(rank: int) -> list[bool]:
    """Per product of a symmetric forward pass: whether what was on its way came while it ran."""
    torch.use_deterministic_algorithms(True)  # an empty tensor holds NaN until something arrives
    under_way: list[ring_pass.Passing] = []
    arrived: list[bool] = []
    product = block_sums

    class Watched(ring_pass.Passing):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            under_way.append(self)

        def wait(self) -> list[Tensor]:
            under_way.remove(self)
            return super().wait()

    def slow_product(*arguments: Any) -> Any:
        deadline = time.monotonic() + 60  # reached only where nothing comes
        while under_way and any(x.isnan().any() for x in under_way[0].arriving):
            if time.monotonic() > deadline:
                break
            time.sleep(0.01)
        arrived.append(bool(under_way) and time.monotonic() < deadline)
        return product(*arguments)

    setattr(ring_pass, "Passing", Watched)  # noqa: B010
    setattr(ring, "block_sums", slow_product)  # noqa: B010
    run_case(Case((2, 2, 2), None, (), SYMMETRIC), rank, "ring")
    return arrived


def test_transfers_of_the_ring_run_beside_its_products() -> None:
    """A product that does not end before the next shard is here: it comes all the same."""
    assert run_ranks(arrives_beside_the_products, 3) == [[True] * 3] * 3
