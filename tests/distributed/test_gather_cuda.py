"""The extension on GPUs: several processes on one GPU, which read one another's memory.

Time-slicing replaces the link, so this shows that results, order and time-out are right; speed is
another matter.
"""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from crossalign.distributed import liveness, symmetric_gather
from crossalign.distributed.gather import GatherBackend, gather_negatives
from tests.support.built_extension import extension_folder, use_extension
from tests.support.gather_cases import DTYPES, ROWS, shards, upstreams
from tests.support.process_group import RankError, run_ranks
from tests.support.tolerances import assert_within_rule

pytestmark = pytest.mark.cuda


def on_gpu(folder: Path) -> None:
    """Several ranks on one GPU: PyTorch allows that on request, and without multicast."""
    os.environ["TORCH_SYMM_MEM_ALLOW_OVERLAPPING_DEVICES"] = "1"
    os.environ["TORCH_SYMM_MEM_DISABLE_MULTICAST"] = "1"
    use_extension(folder)


def gather_all_cases(rank: int, cases: Any, backend: GatherBackend, folder: Path) -> list[Any]:
    on_gpu(folder)
    results = []
    for rows, columns, dtype in cases:
        x = shards(rows, columns, dtype)[rank].cuda().requires_grad_()
        gathered = gather_negatives(x, backend=backend)
        gathered.backward(upstreams(rows, columns, dtype)[rank].cuda())
        results.append((gathered.detach().cpu(), x.grad.cpu()))
    used = [type(one) for known in symmetric_gather._workspaces.values() for one in known.values()]
    assert used == ([] if backend == "collective" else [symmetric_gather.SymmetricWorkspace])
    return results


@pytest.mark.parametrize("backend", ["extension", "auto", "collective"])
@pytest.mark.parametrize("world_size", [2, 3])
def test_values_and_gradients_equal_one_process_bit_for_bit(world_size: int, backend: str) -> None:
    cases = list(itertools.product(ROWS[world_size], (1, 7, 16, 1024), DTYPES))
    folder = extension_folder()
    by_rank = run_ranks(gather_all_cases, world_size, cases, backend, folder, timeout_s=300)
    for index, (rows, columns, dtype) in enumerate(cases):
        total = torch.zeros(sum(rows), columns, dtype=torch.promote_types(dtype, torch.float32))
        for upstream in upstreams(rows, columns, dtype):
            total += upstream
        for rank, gradient_of_rank in enumerate(total.to(dtype).split(list(rows))):
            gathered, gradient = by_rank[rank][index]
            assert torch.equal(gathered, torch.cat(shards(rows, columns, dtype))), (rows, dtype)
            assert torch.equal(gradient, gradient_of_rank), (rows, columns, dtype, rank)


def gather_on_side_streams(rank: int, folder: Path) -> Any:
    """Two streams share one buffer; neither waits for the host."""
    on_gpu(folder)
    x = shards((300, 300), 512)[rank].cuda()
    streams = [torch.cuda.Stream() for _ in range(2)]
    torch.cuda.synchronize()
    results = []
    for number in range(6):
        with torch.cuda.stream(streams[number % 2]):
            results.append(gather_negatives(x + number, backend="extension"))
    torch.cuda.synchronize()
    return [result.cpu() for result in results]


def test_streams_that_share_the_buffer_wait_for_one_another() -> None:
    expected = torch.cat(shards((300, 300), 512))
    for results in run_ranks(gather_on_side_streams, 2, extension_folder()):
        for number, result in enumerate(results):
            assert torch.equal(result, expected + number)


def gather_normalized(rank: int, dtype: torch.dtype, folder: Path) -> Any:
    on_gpu(folder)
    x = shards((50, 33), 1000)[rank].cuda()
    return gather_negatives(x, normalize=True, dtype=dtype, backend="extension").cpu()


@pytest.mark.parametrize("dtype", DTYPES[:3])
def test_rows_are_cast_and_normalized_on_the_way(dtype: torch.dtype) -> None:
    rows = torch.cat(shards((50, 33), 1000))
    truth = F.normalize(rows.double(), dim=1)
    for gathered in run_ranks(gather_normalized, 2, dtype, extension_folder()):
        assert_within_rule(gathered, truth, F.normalize(rows, dim=1).to(dtype))


def skip_the_backward(rank: int, folder: Path) -> Tensor | None:
    on_gpu(folder)
    liveness.LONGEST_WAIT_S = 1.0
    x = torch.ones(3, 4, device="cuda", requires_grad=True)
    gathered = gather_negatives(x, backend="extension")
    torch.cuda.synchronize()
    if rank == 1:
        return None
    gathered.sum().backward(retain_graph=True)  # the host does not wait for the GPU
    gradient = x.grad.cpu()
    assert gradient.isnan().all()
    gathered.sum().backward()
    raise AssertionError("a missing peer went unnoticed")


def test_missing_rank_gives_nan_and_the_next_call_raises() -> None:
    error, _ = run_ranks(skip_the_backward, 2, extension_folder(), expect_errors=True)
    assert isinstance(error, RankError)
    assert "rank 1 of the group did not come within 1 s" in error.message, error.trace


def gather_beyond_int32(rank: int, folder: Path) -> bool:
    on_gpu(folder)
    columns = 4096
    count = 2**31 // columns // 2 + 3
    x = torch.full((count, columns), rank + 1, dtype=torch.bfloat16, device="cuda")
    gathered = gather_negatives(x, backend="extension")
    assert gathered.numel() > 2**31
    return bool((gathered[:count] == 1).all() and (gathered[count:] == 2).all())


@pytest.mark.slow
def test_offsets_beyond_32_bits() -> None:
    assert run_ranks(gather_beyond_int32, 2, extension_folder(), timeout_s=300) == [True, True]
