"""How long a call takes: warm-up by time, then repeats, with a cold cache on a GPU."""

from __future__ import annotations

import contextlib
import math
import signal
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

MIN_REPEATS, MAX_REPEATS = 3, 200
FLUSH_BYTES = 2**28  # more than any L2 cache holds


class Trial(NamedTuple):
    """One set of inputs: the call to measure, and the tensors whose gradients it forms."""

    forward: Callable[[], Tensor]
    leaves: Sequence[Tensor]


def nothing() -> None:
    """What needs no preparation."""


class Clock:
    """Milliseconds of calls on one device."""

    def __init__(self, device: torch.device, seconds: float) -> None:
        """seconds: how long one call is repeated."""
        self.device, self.seconds = device, seconds

    def times(
        self,
        call: Callable[[], Any],
        prepare: Callable[[], None] = nothing,
        repeats: int | None = None,
    ) -> list[float]:
        """Of each repeat; prepare() runs before each and is not timed."""
        clock = self._cuda_ms if self.device.type == "cuda" else _host_ms
        if repeats is None:
            warm_until = time.monotonic() + self.seconds / 4
            single_ms = clock(call, prepare, 1)[0]
            while time.monotonic() < warm_until:
                single_ms = clock(call, prepare, 1)[0]
            wanted = int(self.seconds * 1000 / max(single_ms, 1e-3))
            repeats = min(max(wanted, MIN_REPEATS), MAX_REPEATS)
        return clock(call, prepare, repeats)

    def graph_ms(self, name: str, trials: Sequence[Trial]) -> float:
        """One call inside a captured graph that rotates over the input sets: a cold cache."""
        runners = [runner(name, trial) for trial in trials]
        side = torch.cuda.Stream(self.device)
        side.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(side):
            for prepare, call in runners * 3:
                prepare()
                call()
        torch.cuda.current_stream(self.device).wait_stream(side)
        for prepare, _ in runners:
            prepare()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _, call in runners:
                call()
        return statistics.median(self.times(graph.replay)) / len(trials)

    def _cuda_ms(
        self, call: Callable[[], Any], prepare: Callable[[], None], repeats: int
    ) -> list[float]:
        """Device events; a buffer larger than the L2 cache is overwritten before each call."""
        flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device=self.device)
        events = [[torch.cuda.Event(enable_timing=True) for _ in "se"] for _ in range(repeats)]
        for start, end in events:
            prepare()
            flush.zero_()
            start.record()
            call()
            end.record()
        torch.cuda.synchronize(self.device)
        return [start.elapsed_time(end) for start, end in events]


def runner(name: str, trial: Trial) -> tuple[Callable[[], None], Callable[[], Any]]:
    """(prepare, call) of one pass; backward() gets its graph from prepare()."""
    outputs: list[Tensor] = []

    def clear_leaves() -> None:
        clear(trial.leaves)

    def clear_and_run_forward() -> None:
        clear_leaves()
        outputs.append(trial.forward())

    def backward(output: Tensor) -> None:
        output.backward(torch.ones_like(output))

    if name in ("forward", "step"):  # a step does all itself
        return clear_leaves, trial.forward
    if name == "backward":
        return clear_and_run_forward, lambda: backward(outputs.pop())
    return clear_leaves, lambda: backward(trial.forward())


def clear(leaves: Sequence[Tensor]) -> None:
    """No gradient is left."""
    for leaf in leaves:
        leaf.grad = None


def percentile(values: list[float], share: float) -> float:
    return float(torch.tensor(values, dtype=torch.float64).quantile(share))


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raises TimeoutError in this thread, which must be the main one, after so long."""
    if math.isinf(seconds):
        yield
        return

    def stop(*_: object) -> None:
        raise TimeoutError(f"took more than {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-3))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _host_ms(call: Callable[[], Any], prepare: Callable[[], None], repeats: int) -> list[float]:
    times = []
    for _ in range(repeats):
        prepare()
        start = time.perf_counter()
        result = call()
        times.append((time.perf_counter() - start) * 1000)
        del result
    return times
