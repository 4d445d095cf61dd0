"""Every launch fits its kernel on a GPU, and another size of the batch compiles nothing anew."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton", reason="the kernels need triton")

from benchmarks import kernel_resources

ROOT = Path(__file__).parents[2]
# Launched under the interpreter only; a launch of theirs belongs in recorded_launches.py.
NOT_RECORDED = {
    *("_sigmoid_fwd_kernel", "_sigmoid_bwd_kernel"),
    *("_scaled_queries_kernel", "_kept_gradient_kernel"),
}
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=[80, 90])
def launches(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    """By pointers and by tensor descriptors; in a process whose kernels are not interpreted."""
    kept = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.kernels.recorded_launches", str(request.param)],
        cwd=ROOT,
        env=kept | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    rows: list[dict[str, Any]] = json.loads(done.stdout)
    return rows


def test_every_kernel_is_launched(launches: list[dict[str, Any]]) -> None:
    kernels = set().union(
        *(kernel_resources.kernels_in_source(name) for name in kernel_resources.kernel_modules())
    )
    assert {launch["kernel"] for launch in launches} == kernels - NOT_RECORDED


def test_another_size_of_the_batch_compiles_nothing(launches: list[dict[str, Any]]) -> None:
    for case in {launch["case"] for launch in launches}:
        calls: dict[int, set[int]] = {}
        for launch in launches:
            if launch["case"] == case:
                calls.setdefault(launch["call"], set()).add(launch["compiled"])
        assert len(calls) > 1, case
        assert all(compiled <= calls[0] for compiled in calls.values()), (case, calls)
