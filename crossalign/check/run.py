"""Runs the checks in processes of their own, so that a crash or a hang of one takes no other along.

The interpreter of Triton has to be switched on before a kernel is imported; that is a process of
its own too.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import torch

from crossalign.backends import HAS_TRITON, is_too_old
from crossalign.build_report import build_info
from crossalign.check.catalog import catalog
from crossalign.check.finding import Place

TIME_LIMIT_S = 110.0  # of everything
PARALLEL = 6  # on a GPU it is compiling that takes the time
Result = dict[str, Any]


class Group(NamedTuple):
    """Checks that share a process."""

    title: str
    place: Place
    names: Sequence[str]


class Report(NamedTuple):
    """Everything that `crossalign check` found."""

    info: dict[str, Any]
    device: str
    results: list[Result]  # in the order of the groups
    speed: Result
    seconds: float

    @property
    def is_ok(self) -> bool:
        return bool(self.results) and all(result["ok"] for result in self.results)


def run_checks(tell: Callable[[str, Result], None] = lambda title, result: None) -> Report:
    """tell(title of the group, result) is called as results come in."""
    start = time.monotonic()
    deadline = start + TIME_LIMIT_S
    device = "cuda" if _has_gpu() else "cpu"
    groups = groups_of(device)
    with ThreadPoolExecutor(PARALLEL if device == "cuda" else 1) as pool:
        found = pool.map(lambda group: run_group(group, deadline, tell), groups)
        results = [result for results in found for result in results]
    (speed,) = run_group(Group("speed", Place("auto", device, False), ["speed"]), deadline)
    seconds = round(time.monotonic() - start, 1)
    return Report(build_info(), device, results, speed, seconds)


def _has_gpu() -> bool:
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return HAS_TRITON and count > 0 and not is_too_old(0)


def groups_of(device: str) -> list[Group]:
    if device == "cpu":
        groups = [("PyTorch passes", Place("torch", "cpu", False))]
        if HAS_TRITON:
            groups.append(("Triton kernels, interpreted", Place("triton", "cpu", True)))
        return [Group(title, place, list(catalog(place))) for title, place in groups]
    triton, plain = Place("triton", "cuda", False), Place("torch", "cuda", False)
    kernels = [Group("Triton kernels", triton, [name]) for name in catalog(triton)]
    return [*kernels, Group("PyTorch passes", plain, list(catalog(plain)))]


def run_group(
    group: Group,
    deadline: float,
    tell: Callable[[str, Result], None] = lambda title, result: None,
    command: Sequence[str] = (sys.executable, "-m", "crossalign.check.worker"),
) -> list[Result]:
    """The result of every check; one that ends its process is a failure, and the rest go on."""
    results: list[Result] = []

    def take(result: Result) -> None:
        results.append({"group": group.title, **result})
        tell(group.title, results[-1])

    while names := group.names[len(results) :]:
        before = len(results)
        ended = _run_process(group.place, names, deadline, command, take)
        if len(results) < before + len(names):
            take({"name": group.names[len(results)], "ok": False, "detail": ended})
    return results


def _run_process(
    place: Place,
    names: Sequence[str],
    deadline: float,
    command: Sequence[str],
    take: Callable[[Result], None],
) -> str:
    """Calls take for every result, as it comes; says how the process ended."""
    seconds = deadline - time.monotonic()
    if seconds <= 0:
        return f"not run: the {TIME_LIMIT_S:.0f} s for all checks were over"
    environment = {name: v for name, v in os.environ.items() if name != "TRITON_INTERPRET"}
    if place.backend == "triton" and place.device == "cpu":
        environment["TRITON_INTERPRET"] = "1"
    arguments = [place.backend, place.device, "small" if place.is_small else "full", *names]
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(
            [*command, *arguments],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        ) as process,
    ):
        timer = threading.Timer(seconds, process.kill)
        timer.start()
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("{"):
                take(json.loads(line))
        status = process.wait()
        is_late = not timer.is_alive()
        timer.cancel()
        errors.seek(0)
        last_words = " | ".join(errors.read().strip().splitlines()[-3:])
    if is_late:
        return f"no end after {seconds:.0f} s"
    return f"its process ended with {status}" + (f": {last_words}" if last_words else "")
