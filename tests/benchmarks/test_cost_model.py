"""The cost model: its counts against what real processes multiply, send and hold; its limits."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from benchmarks.scaling import plot
from benchmarks.scaling.cost_model import SCHEDULES, Machine, rank_cost
from crossalign.contrastive.loss import fused_contrastive_loss
from tests.support.process_group import run_ranks

OURS = ("all_gather", "ring")
NUM_PAIRS, NUM_NEGATIVES, WIDTH = 64, 32, 512
# The sum of a rank's weights, its rows with a negative, and its rows that count: three doubles told
# to every other.
TOTALS_BYTES = 24


class Counted(NamedTuple):
    operations: int  # of matrix products
    wire_bytes: int
    largest_bytes: int  # of a single allocation
    peak_bytes: int


def count(step: Callable[[], None]) -> tuple[int, int, int]:
    """(operations of matrix products, largest allocation, peak of all allocations) on the CPU."""
    with profile(
        activities=[ProfilerActivity.CPU],
        record_shapes=True,
        profile_memory=True,
        acc_events=True,  # PyTorch 2.11 warns without it
    ) as run:
        step()
    operations = 0
    for event in run.events():
        if event.name in ("aten::mm", "aten::addmm", "aten::addmm_"):
            left, right = event.input_shapes[1:3] if "add" in event.name else event.input_shapes[:2]
            operations += 2 * left[0] * left[1] * right[1]
    events = run.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    held = torch.tensor([change for _, change in changes])
    return operations, int(held.max()), int(held.cumsum(0).max())


def count_sent() -> list[int]:
    """A list that collects, from now on, the bytes that this process sends."""
    sent: list[int] = []
    size = dist.get_world_size()
    gather_name = "all_gather_single" if hasattr(dist, "all_gather_single") else None
    gather_name = gather_name or "all_gather_into_tensor"
    gather, exchange = getattr(dist, gather_name), dist.all_to_all_single
    pass_on = dist.batch_isend_irecv

    def counted_gather(output: Tensor, shard: Tensor, **options: Any) -> Any:
        sent.append(shard.nbytes * (size - 1))
        return gather(output, shard, **options)

    def counted_exchange(output: Tensor, x: Tensor, *splits: Any, **options: Any) -> Any:
        sent.append(x.nbytes - x.nbytes // len(x) * splits[1][dist.get_rank()])
        return exchange(output, x, *splits, **options)

    def counted_pass_on(operations: list[dist.P2POp]) -> Any:
        sent.extend(one.tensor.nbytes for one in operations if one.op is dist.isend)
        return pass_on(operations)

    setattr(dist, gather_name, counted_gather)
    counted = {"all_to_all_single": counted_exchange, "batch_isend_irecv": counted_pass_on}
    for name, function in counted.items():
        setattr(dist, name, function)
    return sent


def count_steps(rank: int, cases: list[tuple[str, bool, int]]) -> list[Counted]:
    size, sent, counted = dist.get_world_size(), count_sent(), []
    for gather, symmetric, num_negatives in cases:
        shapes = (NUM_PAIRS, NUM_PAIRS, num_negatives)
        leaves = [torch.randn(rows // size, WIDTH).requires_grad_() for rows in shapes]

        def step(
            leaves: list[Tensor] = leaves, symmetric: bool = symmetric, gather: str = gather
        ) -> None:
            loss = fused_contrastive_loss(
                *leaves, symmetric=symmetric, group=dist.group.WORLD, gather=gather
            )
            loss.backward()

        sent.clear()
        operations, largest, peak = count(step)
        counted.append(Counted(operations, sum(sent), largest, peak))
    return counted


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_counts_are_those_of_real_processes(world_size: int) -> None:
    """Products: exactly 1 / W of one process; the symmetric loss costs none more."""
    options = [(True, 0), (False, 0), (True, NUM_NEGATIVES)]
    cases = [(gather, *option) for gather in OURS for option in options]
    for counted in run_ranks(count_steps, world_size, cases):
        for (gather, symmetric, num_negatives), ours in zip(cases, counted, strict=True):
            expected = rank_cost(
                gather,
                world_size,
                NUM_PAIRS,
                WIDTH,
                num_negatives=num_negatives,
                symmetric=symmetric,
                itemsize=4,
            )
            candidates = NUM_PAIRS + num_negatives
            assert ours.operations == 8 * NUM_PAIRS * candidates * WIDTH / world_size
            assert expected.operations == ours.operations
            totals = TOTALS_BYTES * (world_size - 1)
            assert ours.wire_bytes == expected.wire_bytes + totals, (gather, symmetric)


def test_ring_holds_a_few_shards_whatever_the_number_of_ranks() -> None:
    """The number of pairs per rank stays; no tensor is larger than a shard, and their sum stays
    too, while the gathered columns grow with the ranks."""
    cases = [(gather, True, 0) for gather in OURS]
    peaks: dict[str, list[float]] = {gather: [] for gather in OURS}
    for world_size in (3, 6):
        shard_bytes = NUM_PAIRS // world_size * WIDTH * 4
        for gathered, ring in [run_ranks(count_steps, world_size, cases)[0]]:
            assert gathered.largest_bytes == world_size * shard_bytes
            assert ring.largest_bytes == shard_bytes
            peaks["all_gather"].append(gathered.peak_bytes / shard_bytes)
            peaks["ring"].append(ring.peak_bytes / shard_bytes)
    assert peaks["all_gather"][1] > 1.7 * peaks["all_gather"][0]
    assert peaks["ring"][1] < 1.1 * peaks["ring"][0]


def test_open_clip_multiplies_as_often_as_its_loss_does() -> None:
    """Each direction against the gathered columns of the other side, logits kept for backward."""
    rows, ranks = NUM_PAIRS // 4, 4
    positive_logit = [torch.randn(rows, WIDTH).requires_grad_() for _ in range(2)]
    whole = [torch.randn(NUM_PAIRS, WIDTH).requires_grad_() for _ in range(2)]

    def step() -> None:
        labels = torch.arange(rows)
        loss = F.cross_entropy(positive_logit[0] @ whole[1].T, labels)
        (loss + F.cross_entropy(positive_logit[1] @ whole[0].T, labels)).backward()

    operations, _, _ = count(step)
    assert operations == rank_cost("open_clip", ranks, NUM_PAIRS, WIDTH).operations


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_costs_change_with_the_ranks_as_they_must(schedule: str) -> None:
    costs = [rank_cost(schedule, 2**power, 2**16, 768) for power in range(13)]
    assert costs[0].wire_bytes == 0
    for ranks, cost in enumerate(costs):
        assert cost.operations == costs[0].operations / 2**ranks
    for fewer, more in pairwise(costs):
        assert more.wire_bytes > fewer.wire_bytes
        assert more.memory_bytes <= fewer.memory_bytes
    ideal = Machine(matrix_tflops=100.0, link_gbps=1e12, latency_us=0.0)
    at_once = rank_cost(schedule, 64, 2**16, 768, machine=ideal)
    rate = 50e12 if schedule == "inf_cl" else 100e12
    assert at_once.seconds == pytest.approx(at_once.operations / rate, rel=1e-6)
    slow = rank_cost(schedule, 64, 2**16, 768, machine=Machine(link_gbps=1e-3))
    # Nothing hides so slow a network: 1 MB/s, one direction at a time.
    assert slow.seconds == pytest.approx(slow.wire_bytes / 1e6, rel=0.05)


def test_one_rank_is_one_process() -> None:
    for schedule in OURS:
        cost = rank_cost(schedule, 1, 4096, 256, num_negatives=1024)
        assert cost.operations == 8 * 4096 * 5120 * 256
        assert cost.wire_bytes == 0
        assert cost.seconds == pytest.approx(cost.operations / 400e12)


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match=r"schedule must be one of .* got 'star'"):
        rank_cost("star", 1, 1, 1)
    with pytest.raises(ValueError, match="world_size must be positive, got 0"):
        rank_cost("ring", 0, 1, 1)
    with pytest.raises(ValueError, match="num_negatives must be 0 for inf_cl, got 3"):
        rank_cost("inf_cl", 2, 8, 8, num_negatives=3)


def test_figure_is_drawn_and_the_documented_table_is_the_model_s(tmp_path: Path) -> None:
    plot.draw(tmp_path / "scaling.png")
    assert (tmp_path / "scaling.png").stat().st_size > 10_000
    page = (Path(__file__).parents[2] / "docs" / "scaling.md").read_text()
    assert "\n".join(plot.table()) in page
