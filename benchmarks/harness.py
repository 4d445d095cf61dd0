"""The only timing and memory code of the benchmarks: check, then measure, then write one row.

Times are medians with 20th and 80th percentile; timing.py takes them.
Memory is the peak above the inputs: on a GPU what PyTorch's allocator reports; on a CPU the
process's resident high-water mark, which the Linux kernel keeps and which is reset before each
measured call. It misses nothing (no sampling), and freed heap pages are handed back first, so two
runs agree within a few MiB.
"""

from __future__ import annotations

import gc
import json
import math
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.accuracy import Verdict
from benchmarks.provenance import clock_state, provenance, result_path
from benchmarks.resident_memory import peak_resident_mib
from benchmarks.timing import Clock, Trial, clear, percentile, runner, time_limit

PASSES = ("forward", "backward", "both")
MIB = 2**20
GRAPH_BELOW_MS = 2.0  # shorter calls are also timed inside a captured graph, without launch gaps
CACHE_BYTES, MAX_ROTATIONS = 128 * MIB, 32  # twice the L2 cache of an H200


class Work(NamedTuple):
    """The least that one pass must do: floating-point operations, and bytes read and written."""

    flops: float
    bytes: float


class Harness:
    """One run on one device: its ceilings, its time budget and its result file."""

    def __init__(
        self,
        subject: str,
        device: str,
        output: Path | None = None,
        *,
        seconds: float = 1.0,
        budget_seconds: float = float("inf"),
        row_seconds: float = float("inf"),
    ) -> None:
        """seconds: of timing per pass; row_seconds: of an implementation's check and all passes."""
        self.device = torch.device(device)
        self.clock = Clock(self.device, seconds)
        self.row_seconds = row_seconds
        self.deadline = time.monotonic() + budget_seconds
        self.run = {"subject": subject, **provenance(self.device)}
        self.path = output or result_path(subject, self.run)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text("")
        self.failed: list[str] = []
        self._ceilings: dict[torch.dtype, dict[str, float]] = {}

    def measure(
        self,
        case: dict[str, Any],
        implementation: str,
        trials: Sequence[Trial],
        dtype: torch.dtype,
        work: dict[str, Work],
        check: Callable[[], Verdict],
        *,
        once: bool = False,
    ) -> None:
        """Rows for the passes in work; a wrong implementation gets its verdict instead of a time.

        once: each pass is timed once, without warm-up: for steps that take many seconds.
        """
        row = {**case, "implementation": implementation, "dtype": str(dtype).split(".")[-1]}
        if time.monotonic() > self.deadline:
            self.skip(case, implementation, dtype, "out of the time budget")
            return
        try:
            with time_limit(min(self.row_seconds, self.deadline - time.monotonic())):
                verdict = check()
                row |= {"error": verdict.error, "error_allowed": verdict.allowed}
                if not verdict.error <= verdict.allowed:
                    self._write(row, status="wrong: not timed")
                    return
                for name, least in work.items():
                    self._measure_pass(row | {"pass": name}, trials, dtype, least, once)
        except Exception as problem:  # a failure is a row, not the end of the run
            self._write(row, status=_describe(problem))
        finally:
            for trial in trials:
                clear(trial.leaves)
            self._release()

    def skip(
        self, case: dict[str, Any], implementation: str, dtype: torch.dtype, reason: str
    ) -> None:
        """A row that says why there is no number."""
        row = {**case, "implementation": implementation, "dtype": str(dtype).split(".")[-1]}
        self._write(row, status=f"not measured: {reason}")

    def rotations(self, bytes_per_set: float) -> int:
        """How many input sets overflow the cache of a GPU, for calls timed inside a graph."""
        if self.device.type == "cpu":
            return 1
        return min(MAX_ROTATIONS, math.ceil(CACHE_BYTES / bytes_per_set))

    def close(self) -> str | None:
        """What to exit with: None, or which of our own implementations failed."""
        print(f"wrote {self.path}")
        return "\n".join(self.failed) or None

    def ceilings(self, dtype: torch.dtype) -> dict[str, float]:
        """What this device reaches in this run: a large matrix product, a large copy."""
        if dtype not in self._ceilings:
            size, copied = (1024, 256 * MIB) if self.device.type == "cpu" else (8192, 2048 * MIB)
            a, b = (torch.randn(size, size, device=self.device, dtype=dtype) for _ in "ab")
            product_ms = statistics.median(self.clock.times(lambda: a @ b))
            source = torch.empty(copied, dtype=torch.uint8, device=self.device).random_()
            target = torch.empty_like(source)
            copy_ms = statistics.median(self.clock.times(lambda: target.copy_(source)))
            self._ceilings[dtype] = {
                "matrix_tflops": 2 * size**3 / product_ms / 1e9,
                "copy_gbps": 2 * source.numel() / copy_ms / 1e6,
            }
            del a, b, source, target
            self._release()
        return self._ceilings[dtype]

    def _measure_pass(
        self,
        row: dict[str, Any],
        trials: Sequence[Trial],
        dtype: torch.dtype,
        work: Work,
        once: bool,
    ) -> None:
        prepare, call = runner(row["pass"], trials[0])
        ceilings = self.ceilings(dtype)
        times = self.clock.times(call, prepare, repeats=1 if once else None)
        clear(trials[0].leaves)
        peak_mib = self._peak_mib(prepare, call)
        median = statistics.median(times)
        tflops, gbps = work.flops / median / 1e9, work.bytes / median / 1e6
        floor_ms = max(
            work.flops / ceilings["matrix_tflops"] / 1e9, work.bytes / ceilings["copy_gbps"] / 1e6
        )
        numbers = {
            "median_ms": median,
            "p20_ms": percentile(times, 0.2),
            "p80_ms": percentile(times, 0.8),
            "repeats": len(times),
            "peak_mib": peak_mib,
            "tflops": tflops,
            "gbps": gbps,
            "floor_ms": floor_ms,
            "share_of_ceiling": floor_ms / median,
            **ceilings,
        }
        self._write(row, status="ok", **numbers, **clock_state(self.device))
        is_short = self.device.type == "cuda" and median < GRAPH_BELOW_MS
        if is_short and not once and row["pass"] != "backward":
            # After the row is written, and as a row of its own: a call that cannot be captured,
            # such as a peer's that waits for the device, may take the process along.
            graph_ms = self.clock.graph_ms(row["pass"], trials)
            in_graph = row | {"pass": f"{row['pass']} in a graph"}
            self._write(in_graph, status="ok", median_ms=graph_ms)

    def _peak_mib(self, prepare: Callable[[], None], call: Callable[[], Any]) -> float | None:
        """Peak of one call above what is held before its preparation, gradients included."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            held = torch.cuda.memory_allocated(self.device)
            prepare()
            torch.cuda.reset_peak_memory_stats(self.device)
            call()
            torch.cuda.synchronize(self.device)
            return (torch.cuda.max_memory_allocated(self.device) - held) / MIB
        return peak_resident_mib(prepare, call)

    def _release(self) -> None:
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _write(self, row: dict[str, Any], *, status: str, **numbers: Any) -> None:
        """Appended at once, so that a run that is cut off keeps what it measured."""
        with self.path.open("a") as file:
            file.write(json.dumps({**row, "status": status, **numbers, "run": self.run}) + "\n")
        label = " ".join(str(value) for value in row.values() if not isinstance(value, float))
        time_text = f"{numbers['median_ms']:10.3f} ms" if "median_ms" in numbers else status
        print(f"{label:78} {time_text}", flush=True)
        ours = row["implementation"].startswith("crossalign")
        if ours and status.startswith(("wrong", "failed")):
            self.failed.append(f"{label}: {status}")


def _describe(problem: Exception) -> str:
    text = str(problem)
    if isinstance(problem, torch.OutOfMemoryError) or "can't allocate memory" in text:
        return "out of memory"
    return f"failed: {type(problem).__name__}: {(text.splitlines() or [''])[0][:200]}"
