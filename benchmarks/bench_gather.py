"""What does the gather of negatives cost beside PyTorch's own collectives, forward and backward?

python -m benchmarks.bench_gather --ranks 2                    # processes on this CPU, gloo
python -m benchmarks.bench_gather --ranks 8 --device cuda      # one process per GPU, NCCL
python -m benchmarks.bench_gather --ranks 2 --device cuda      # on one GPU: see below

Every rank holds the same number of rows, since PyTorch's calls can do no other. A time is that of
the slowest rank, from a barrier on. gather_negatives tells the ranks' sizes to one another first.
Ranks that share a GPU (NCCL allows none) use gloo, which goes through the host; the extension reads
the other process's memory there. Such a run tells what the calls cost beside the copy, not a link.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional
from torch import Tensor

from benchmarks.provenance import provenance, result_path
from crossalign.distributed.gather import extension_status, gather_negatives, load_extension
from crossalign.distributed.rank_agreement import all_gather_single

WARM_UP = 5
CASES = ((256, 256), (2048, 256), (2048, 1024), (16384, 1024))  # rows per rank, columns
Gather = Callable[[Tensor], Tensor]


class PlainGather(torch.autograd.Function):
    """What one writes by hand: all_gather forward, reduce_scatter backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.shape = x.shape
        gathered = x.new_empty((dist.get_world_size() * x.shape[0], x.shape[1]))
        group = dist.group.WORLD
        assert group is not None
        all_gather_single(gathered, x, group)
        return gathered

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        total = grad.new_empty(ctx.shape)
        renamed(dist, "reduce_scatter_single", "reduce_scatter_tensor")(total, grad.contiguous())
        return total


def functional_gather(x: Tensor) -> Tensor:
    """PyTorch's differentiable gather, waited for."""
    gather = renamed(functional, "all_gather_single_autograd", "all_gather_tensor_autograd")
    waited: Tensor = functional.wait_tensor(gather(x, 0, dist.group.WORLD))
    return waited


def renamed(module: ModuleType, name: str, name_before_2_13: str) -> Callable[..., Any]:
    return getattr(module, name, None) or getattr(module, name_before_2_13)


def implementations() -> dict[str, Gather]:
    return {
        "crossalign extension": lambda x: gather_negatives(x, backend="extension"),
        "crossalign collective": lambda x: gather_negatives(x, backend="collective"),
        "all_gather + reduce_scatter": PlainGather.apply,
        "all_gather_tensor_autograd": functional_gather,
    }


def make_inputs(
    rows: int, columns: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """This rank's rows, and its gradient of the gathered rows."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    generator = torch.Generator(device).manual_seed(rank)
    x = torch.randn(rows, columns, device=device, generator=generator)
    upstream = torch.randn(world_size * rows, columns, device=device, generator=generator)
    return x.to(dtype).requires_grad_(), upstream.to(dtype)


def check(gather: Gather, x: Tensor, upstream: Tensor) -> float:
    """Relative error of the gradient against a float64 sum; the own rows must come back equal."""
    gathered = gather(x)
    (gradient,) = torch.autograd.grad(gathered, x, upstream)
    rows, truth = x.shape[0], upstream.double()
    dist.all_reduce(truth)
    truth = truth[dist.get_rank() * rows :][:rows]
    if not torch.equal(gathered[dist.get_rank() * rows :][:rows], x):
        return float("inf")
    return float((gradient.double() - truth).norm() / truth.norm())


def times_ms(gather: Gather, x: Tensor, upstream: Tensor, repeats: int) -> dict[str, list[float]]:
    """Milliseconds of the slowest rank, per pass."""
    times = torch.zeros(2, repeats + WARM_UP, dtype=torch.float64, device=x.device)
    for repeat in range(repeats + WARM_UP):
        start = _now(x, wait_for_all=True)
        gathered = gather(x)
        middle = _now(x)
        torch.autograd.grad(gathered, x, upstream)
        times[0, repeat], times[1, repeat] = middle - start, _now(x) - middle
    dist.all_reduce(times, dist.ReduceOp.MAX)
    forward, backward = times[:, WARM_UP:]
    return {
        "forward": forward.tolist(),
        "backward": backward.tolist(),
        "both": (forward + backward).tolist(),
    }


def _now(x: Tensor, wait_for_all: bool = False) -> float:
    if wait_for_all:
        dist.barrier()
    if x.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() * 1000


def run_rank(rank: int, port: int, options: argparse.Namespace, path: Path) -> None:
    device, backend = torch.device("cpu"), "gloo"
    if options.device == "cuda":
        num_gpus = torch.cuda.device_count()
        device = torch.device("cuda", rank % num_gpus)
        torch.cuda.set_device(device)
        backend = "nccl" if options.ranks <= num_gpus else "gloo"
    else:  # as torchrun does: threads of one rank would wait on the cores of another
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // options.ranks))
    store = dist.TCPStore("127.0.0.1", port, is_master=False)
    dist.init_process_group(backend, store=store, rank=rank, world_size=options.ranks)
    dtype = getattr(torch, options.dtype)
    run = {"subject": "gather", **provenance(device)}
    for rows, columns in options.case or CASES:
        x, upstream = make_inputs(rows, columns, dtype, device)
        for name, gather in implementations().items():
            row: dict[str, Any] = {"ranks": options.ranks, "rows": rows, "columns": columns}
            row |= {"dtype": options.dtype, "implementation": name, "backend": backend}
            if name == "crossalign extension" and load_extension() is None:
                report(rank, path, row | {"status": f"not measured: {extension_status()}"}, run)
                continue
            try:
                row["error"] = check(gather, x, upstream)
            except (RuntimeError, ValueError) as error:  # of a backend that lacks it, on all ranks
                report(rank, path, row | {"status": f"failed: {str(error)[:200]}"}, run)
                continue
            row["error_allowed"] = 4 * torch.finfo(dtype).eps
            right = torch.tensor(float(row["error"] <= row["error_allowed"]), device=device)
            dist.all_reduce(right, dist.ReduceOp.MIN)
            if not right:
                report(rank, path, row | {"status": "wrong: not timed"}, run)
                continue
            for name_of_pass, times in times_ms(gather, x, upstream, options.repeats).items():
                report(rank, path, row | {"pass": name_of_pass} | summary(times, x), run)
    dist.destroy_process_group()


def summary(times: list[float], x: Tensor) -> dict[str, Any]:
    """gbps: what a rank receives of the others, in one direction, per second of the median."""
    received = (dist.get_world_size() - 1) * x.numel() * x.element_size()
    median = statistics.median(times)
    p20, p80 = torch.tensor(times, dtype=torch.float64).quantile(torch.tensor([0.2, 0.8]).double())
    return {
        **{"status": "ok", "median_ms": median, "p20_ms": float(p20), "p80_ms": float(p80)},
        **{"repeats": len(times), "gbps": received / median / 1e6},
    }


def report(rank: int, path: Path, row: dict[str, Any], run: dict[str, Any]) -> None:
    if rank == 0:
        with path.open("a") as file:
            file.write(json.dumps({**row, "run": run}) + "\n")
        label = " ".join(str(row.get(name, "")) for name in LABELS)
        print(f"{label:60}", row.get("median_ms", row["status"]), flush=True)


LABELS = ("ranks", "rows", "columns", "dtype", "implementation", "pass")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--case", type=int, nargs=2, action="append", metavar=("ROWS", "COLUMNS"))
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("bench_gather: no GPU is here; nothing was measured")
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    if options.device == "cuda" and options.ranks > torch.cuda.device_count():
        # PyTorch's symmetric memory allows that on request, and without multicast.
        os.environ["TORCH_SYMM_MEM_ALLOW_OVERLAPPING_DEVICES"] = "1"
        os.environ["TORCH_SYMM_MEM_DISABLE_MULTICAST"] = "1"
    path = result_path("gather", provenance(torch.device(options.device)))
    path.parent.mkdir(parents=True, exist_ok=True)
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    # Not spawn: in a process that ends as a whole interpreter does, a thread of gloo is sometimes
    # still there when its owner is destroyed, and aborts it (2 of 25 runs of bare collectives).
    torch.multiprocessing.start_processes(
        run_rank, (store.port, options, path), options.ranks, start_method="forkserver"
    )


if __name__ == "__main__":
    main()
