"""Checks in processes of their own: one that crashes or hangs takes no other along."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import pytest

from crossalign.check.finding import Place
from crossalign.check.run import Group, Report, run_group

# Stands in for the worker: each name says what becomes of it.
WORKER = """
import json, os, sys, time
for name in sys.argv[4:]:
    if name == "crash":
        print("out of luck", file=sys.stderr)
        sys.exit(3)
    if name == "hang":
        time.sleep(600)
    print("some other line")
    interpreted = os.environ.get("TRITON_INTERPRET")
    print(json.dumps({"name": name, "ok": True, "interpreted": interpreted}), flush=True)
"""


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    (tmp_path / "worker.py").write_text(WORKER)
    return [sys.executable, str(tmp_path / "worker.py")]


def run(command: list[str], names: list[str], seconds: float = 60, backend: Any = "torch") -> Any:
    group = Group("kernels", Place(backend, "cpu", True), names)
    told: list[str] = []
    deadline = time.monotonic() + seconds
    results = run_group(group, deadline, lambda title, one: told.append(one["name"]), command)
    assert [result["name"] for result in results] == told == names
    assert {result["group"] for result in results} == {"kernels"}
    return results


def test_a_crash_is_a_failure_and_the_rest_go_on(command: list[str]) -> None:
    one, crash, two = run(command, ["one", "crash", "two"])
    assert one["ok"] and two["ok"] and not crash["ok"]
    assert crash["detail"] == "its process ended with 3: out of luck"


def test_a_hang_ends_at_the_deadline_and_the_rest_are_not_run(command: list[str]) -> None:
    one, hang, two = run(command, ["one", "hang", "two"], seconds=5)
    assert one["ok"] and not hang["ok"] and not two["ok"]
    assert hang["detail"].startswith("no end after") and two["detail"].startswith("not run:")


@pytest.mark.parametrize(("backend", "expected"), [("torch", None), ("triton", "1")])
def test_only_kernels_are_interpreted(
    backend: str, expected: str | None, command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    (result,) = run(command, ["one"], backend=backend)
    assert result["interpreted"] == expected


def test_the_real_worker_answers() -> None:
    group = Group("PyTorch passes", Place("torch", "cpu", True), ["ids", "no such check"])
    right, unknown = run_group(group, time.monotonic() + 100)
    assert right["ok"] and 0 < right["error"] < right["limit"]
    assert not unknown["ok"] and "KeyError" in unknown["detail"]


def test_nothing_checked_is_not_all_right() -> None:
    assert not Report({}, "cpu", [], {}, 0.0).is_ok
    assert Report({}, "cpu", [{"ok": True}], {}, 0.0).is_ok
    assert not Report({}, "cpu", [{"ok": True}, {"ok": False}], {}, 0.0).is_ok
