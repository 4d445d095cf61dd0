"""fused_contrastive_loss(group=...) in real processes against the reference on the whole batch."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from built_extension import extension_folder, use_extension
from cases import needs_interpreter
from distributed_cases import (
    GRADIENTS,
    HARD,
    POSITIVE,
    SUM,
    SYMMETRIC,
    Case,
    Outcome,
    cases,
    joined_gradients,
    rank_arguments,
    truth,
    upstream,
    whole_batch,
)
from process_group import run_ranks
from tolerances import assert_within_rule
from torch import Tensor

from crossalign import reference, symmetric_gather
from crossalign.contrastive_loss import fused_contrastive_loss

SCHEDULES = ("all_gather", "ring")


@dataclasses.dataclass
class Result:
    """What one rank got."""

    loss: Tensor
    stats: tuple[Tensor, ...]
    gradients: dict[str, Tensor]


def run_case(
    case: Case, rank: int, gather: str, backend: str = "auto", group: Any = None
) -> Result:
    arguments = rank_arguments(case, rank)
    leaves = {
        name: arguments[name] for name in GRADIENTS if isinstance(arguments.get(name), Tensor)
    }
    loss, stats = fused_contrastive_loss(
        **arguments,
        group=group or dist.group.WORLD,
        gather=gather,
        backend=backend,
        return_stats=True,
    )
    loss.backward(upstream(case, rank).to(loss.dtype))
    return Result(loss.detach(), stats, {name: leaf.grad for name, leaf in leaves.items()})


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


def assert_close(ours: Tensor, expected: Tensor, tolerance: float, what: Any) -> None:
    assert ours.shape == expected.shape, what
    largest = expected.abs().max() if expected.numel() else 0
    error = (ours.double() - expected).abs().max() if expected.numel() else 0
    assert error <= tolerance * largest + 1e-15, (what, error, largest)


def assert_equals_one_process(case: Case, by_rank: list[Result], tolerance: float) -> Outcome:
    expected = truth(case)
    for rank, result in enumerate(by_rank):
        assert_close(result.loss, expected.losses[rank], tolerance, ("loss", rank, case))
        for value, other in zip(result.stats, by_rank[0].stats, strict=True):
            assert torch.equal(value, other) and value.dtype == torch.float32
    for value, wanted in zip(by_rank[0].stats, expected.stats, strict=True):
        torch.testing.assert_close(value.double(), wanted, rtol=1e-5, atol=1e-6)
    joined = joined_gradients(case, [result.gradients for result in by_rank])
    assert joined.keys() == expected.gradients.keys()
    for name, gradient in joined.items():
        assert_close(gradient, expected.gradients[name], tolerance, (name, case))
    return expected


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
        expected, plain = truth(case), truth(case, torch.float32)
        for gather in SCHEDULES:
            results = [results[index][gather] for results in by_rank]
            for rank, result in enumerate(results):
                assert result.loss.dtype == torch.float32
                assert_within_rule(result.loss, expected.losses[rank], plain.losses[rank], "loss")
            joined = joined_gradients(case, [result.gradients for result in results])
            for name, gradient in joined.items():
                assert gradient.dtype == case.dtype
                rule = (gradient, expected.gradients[name], plain.gradients[name])
                assert_within_rule(*rule, f"{gather} {case.dtype} {name}")


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
