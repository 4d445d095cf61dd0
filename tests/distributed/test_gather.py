"""gather_negatives in real processes: values, gradients and errors against one process."""

from __future__ import annotations

import itertools
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from crossalign.distributed import symmetric_gather
from crossalign.distributed.gather import (
    GatherBackend,
    gather_negatives,
    gather_rows,
    reduce_rows,
    shard_layout,
)
from tests.support.built_extension import extension_folder, use_extension
from tests.support.gather_cases import DTYPES, ROWS, random, shards, upstreams
from tests.support.process_group import run_ranks

BACKENDS = ("collective", "extension")


# --- equals one process ---------------------------------------------------------------------------


def gather_all_cases(rank: int, cases: Any, backend: GatherBackend, folder: Path) -> list[Any]:
    use_extension(folder)
    results = []
    for rows, columns, dtype in cases:
        x = shards(rows, columns, dtype)[rank].requires_grad_()
        gathered = gather_negatives(x, backend=backend)
        gathered.backward(upstreams(rows, columns, dtype)[rank])
        results.append((gathered.detach(), x.grad))
    return results


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_values_and_gradients_equal_one_process_bit_for_bit(world_size: int, backend: str) -> None:
    """Also with 7 columns, a row of 14 bytes, which no 16-byte access fits."""
    cases = list(itertools.product(ROWS[world_size], (7, 16), DTYPES))
    by_rank = run_ranks(gather_all_cases, world_size, cases, backend, extension_folder())
    for index, (rows, columns, dtype) in enumerate(cases):
        total = torch.zeros(sum(rows), columns, dtype=torch.promote_types(dtype, torch.float32))
        for upstream in upstreams(rows, columns, dtype):
            total += upstream
        for rank, gradient_of_rank in enumerate(total.to(dtype).split(list(rows))):
            gathered, gradient = by_rank[rank][index]
            assert torch.equal(gathered, torch.cat(shards(rows, columns, dtype))), (rows, dtype)
            assert gradient.dtype == dtype
            assert torch.equal(gradient, gradient_of_rank), (rows, columns, dtype, rank)


def loss_of(gathered: Tensor, rank: int) -> Tensor:
    """Another nonlinear function of all the rows on every rank."""
    return (gathered @ gathered.T * (rank + 1)).sin().sum()


def gradients_of_losses(
    rank: int, rows: Sequence[int], backend: GatherBackend, options: dict[str, Any], folder: Path
) -> list[Tensor]:
    """Twice, so that the bits can be compared."""
    use_extension(folder)
    gradients: list[Any] = []
    for _ in range(2):
        x = shards(rows, 5)[rank].double() if not options else shards(rows, 5)[rank]
        loss = loss_of(gather_negatives(x.requires_grad_(), backend=backend, **options), rank)
        gradients += torch.autograd.grad(loss, x)
    return gradients


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("options", "tolerance"),
    [
        ({}, 1e-13),
        ({"normalize": True}, 1e-5),
        ({"normalize": True, "dtype": torch.bfloat16}, 3e-2),
    ],
)
def test_gradient_of_all_ranks_losses_equals_one_process(
    backend: str, options: dict[str, Any], tolerance: float
) -> None:
    """Truth: float64 autograd through the concatenated rows. Two runs give the same bits."""
    rows = (4, 0, 3)
    by_rank = run_ranks(gradients_of_losses, 3, rows, backend, options, extension_folder())
    x = torch.cat(shards(rows, 5)).double().requires_grad_()
    gathered = F.normalize(x, dim=1) if options else x
    loss = torch.stack([loss_of(gathered, rank) for rank in range(3)]).sum()
    (truth,) = torch.autograd.grad(loss, x)
    for (first, second), expected in zip(by_rank, truth.split(rows), strict=True):
        assert torch.equal(first, second)
        error = (first.double() - expected).abs().max() if len(first) else torch.tensor(0.0)
        assert error <= tolerance * truth.abs().max()


def strided_gather(rank: int, backend: GatherBackend, folder: Path) -> Any:
    use_extension(folder)
    base = random(rank, 6, 4).requires_grad_()
    gathered = gather_negatives(base.T, backend=backend)  # (4, 6), strides 1 and 4
    (gathered.T @ random(9, 8, 3)).sum().backward()  # a transposed upstream gradient
    (expanded,) = torch.autograd.grad(gather_negatives(base.T, backend=backend).sum(), base)
    return gathered.detach(), base.grad, expanded


@pytest.mark.parametrize("backend", BACKENDS)
def test_strides_of_inputs_and_upstream_gradients_do_not_matter(backend: str) -> None:
    bases = [random(rank, 6, 4).requires_grad_() for rank in range(2)]
    expected = torch.cat([base.T for base in bases])
    truth = torch.autograd.grad(2 * (expected.T @ random(9, 8, 3)).sum(), bases)
    results = run_ranks(strided_gather, 2, backend, extension_folder())
    for (gathered, gradient, expanded), expected_gradient in zip(results, truth, strict=True):
        assert torch.equal(gathered, expected)
        torch.testing.assert_close(gradient, expected_gradient)
        assert torch.equal(expanded, torch.full((6, 4), 2.0))


def parameter_gradients_under_ddp(rank: int, rows: Sequence[int]) -> list[Tensor]:
    model = nn.parallel.DistributedDataParallel(linear_model())
    embedded = model(shards(rows, 5)[rank])
    first = sum(rows[:rank])
    loss = F.cross_entropy(
        embedded @ gather_negatives(embedded).T,
        torch.arange(first, first + rows[rank]),
        reduction="sum",
    )
    (loss * len(rows) / sum(rows)).backward()
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


def linear_model() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(5, 4)


def test_parameter_gradients_averaged_by_ddp_are_those_of_one_process() -> None:
    """The scale too: a gather whose gradient is off by the number of ranks fails here."""
    rows = (3, 5)
    model = linear_model()
    embedded = model(torch.cat(shards(rows, 5)))
    F.cross_entropy(embedded @ embedded.T, torch.arange(8)).backward()
    for gradients in run_ranks(parameter_gradients_under_ddp, 2, rows):
        for gradient, parameter in zip(gradients, model.parameters(), strict=True):
            torch.testing.assert_close(gradient, parameter.grad)


# --- edges ----------------------------------------------------------------------------------------


def gather_in_subgroup(rank: int, backend: GatherBackend, folder: Path) -> Any:
    use_extension(folder)
    group = dist.new_group([0, 2])
    alone = dist.new_group([1])
    x = random(rank, 2, 3).requires_grad_()
    if rank == 1:
        assert gather_negatives(x, alone, backend=backend) is x
        with pytest.raises(TypeError, match=r"group must be a .* process group"):
            gather_negatives(x, group)
        return None
    gathered = gather_negatives(x, group, backend=backend)
    gathered.sum().backward()
    return gathered.detach(), x.grad


@pytest.mark.parametrize("backend", BACKENDS)
def test_subgroup_gathers_its_own_ranks(backend: str) -> None:
    first, outside, last = run_ranks(gather_in_subgroup, 3, backend, extension_folder())
    expected = torch.cat([random(0, 2, 3), random(2, 2, 3)])
    assert outside is None
    for gathered, gradient in (first, last):
        assert torch.equal(gathered, expected)
        assert torch.equal(gradient, torch.full((2, 3), 2.0))


def gather_where_one_rank_is_frozen(rank: int, backend: GatherBackend, folder: Path) -> Any:
    use_extension(folder)
    x = random(rank, 2, 3).requires_grad_(rank == 1)
    gather_negatives(x, backend=backend).sum().backward()
    with torch.no_grad():
        assert not gather_negatives(x, backend=backend).requires_grad
    frozen = gather_negatives(x.detach(), backend=backend)
    return x.grad, frozen.requires_grad


@pytest.mark.parametrize("backend", BACKENDS)
def test_rank_without_gradient_takes_part_in_the_backward(backend: str) -> None:
    (none, _), (gradient, requires_grad) = run_ranks(
        gather_where_one_rank_is_frozen, 2, backend, extension_folder()
    )
    assert none is None and not requires_grad
    assert torch.equal(gradient, torch.full((2, 3), 2.0))


def gather_more_and_more(rank: int, folder: Path) -> Any:
    """The second gather outgrows the first one's buffer, while the first still waits."""
    use_extension(folder)
    small = random(rank, 2, 3).requires_grad_()
    large = random(rank, 600, 1000).requires_grad_()
    first = gather_negatives(small, backend="extension")
    second = gather_negatives(large, backend="extension")
    (second.sum() + first.sum()).backward()
    expected = torch.cat([random(0, 600, 1000), random(1, 600, 1000)])
    return torch.equal(second, expected), small.grad, large.grad


def test_buffer_grows_under_pending_gradients_and_leaves_no_file() -> None:
    for equal, small_gradient, large_gradient in run_ranks(
        gather_more_and_more, 2, extension_folder()
    ):
        assert equal
        assert torch.equal(small_gradient, torch.full((2, 3), 2.0))
        assert torch.equal(large_gradient, torch.full((600, 1000), 2.0))
    assert not list(Path("/dev/shm").glob("crossalign-*"))


def many_rounds(rank: int, folder: Path) -> bool:
    """Each round has its own number: a rank that reads too early or too late sees another."""
    use_extension(folder)
    group = dist.group.WORLD
    assert group is not None
    layout = shard_layout(group, (300, 200, 400), ["cpu"] * 3, row_bytes=1024, backend="extension")
    right = True
    for number in range(40):
        x = torch.full((layout.rows[rank], 256), float(number))
        right &= bool((gather_rows(x, layout) == number).all())
        grad = torch.full((900, 256), -float(number))
        right &= bool((reduce_rows(grad, layout, torch.float32) == -3 * number).all())
    return right


def test_many_rounds_through_one_buffer_stay_in_step() -> None:
    assert run_ranks(many_rounds, 3, extension_folder()) == [True, True, True]


def test_one_process_gets_its_own_rows() -> None:
    x = random(0, 3, 4).requires_grad_()
    assert gather_negatives(x) is x
    assert gather_negatives(x, dtype=torch.bfloat16).dtype == torch.bfloat16
    torch.testing.assert_close(gather_negatives(x, normalize=True), F.normalize(x, dim=1))
    compiled = torch.compile(gather_negatives, backend="eager", fullgraph=True)
    assert torch.equal(compiled(x), x)


def compiled_gather(rank: int) -> Any:
    # Dynamo looks at .grad of whatever crosses a graph break.
    warnings.filterwarnings("default", message="The .grad attribute of a Tensor that is not a leaf")
    x = random(rank, rank + 1, 3).requires_grad_()

    def loss(x: Tensor) -> Tensor:
        return loss_of(gather_negatives(x.sin()), rank)

    (gradient,) = torch.autograd.grad(torch.compile(loss, backend="eager")(x), x)
    (expected,) = torch.autograd.grad(loss(x), x)
    return torch.equal(gradient, expected)


def test_compiled_function_breaks_its_graph_and_stays_right() -> None:
    assert run_ranks(compiled_gather, 2) == [True, True]


def gather_with_override(rank: int, folder: Path) -> Any:
    os.environ["CROSSALIGN_GATHER"] = "collective"
    use_extension(folder)
    gather_negatives(random(rank, 2, 3), backend="extension")
    return len(symmetric_gather._workspaces)


def test_environment_variable_forces_the_collectives() -> None:
    assert run_ranks(gather_with_override, 2, extension_folder()) == [0, 0]
