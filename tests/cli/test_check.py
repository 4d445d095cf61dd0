"""`crossalign check`: what it prints, its exit status, and the block for a bug report."""

from __future__ import annotations

import json
from typing import Any

import pytest

from crossalign.check import run as check_run
from crossalign.check.run import Report
from tests.support.command_cases import Run

RIGHT = {"name": "loss", "ok": True, "error": 1e-6, "limit": 1e-3, "where": "", "seconds": 0.2}
BITS = {"name": "same bits", "ok": True, "error": 0.0, "limit": 0.0, "where": "", "seconds": 1.5}
WRONG = {**RIGHT, "name": "ids", "ok": False, "error": 0.5, "where": "gradient of key, row 7"}
LOST = {"name": "pooling", "ok": False, "detail": "its process ended with -11"}
ROW = {"ours_ms": 10.0, "eager_ms": 15.0, "share_of_product": 0.75}
SPEED = {
    "pairs": 2048,
    "features": 256,
    "dtype": "float32",
    "product_tflops": 0.05,
    "rows": {"one way": ROW, "symmetric": ROW},
}


def set_results(monkeypatch: pytest.MonkeyPatch, results: list[dict[str, Any]]) -> None:
    def run_checks(tell: Any = lambda title, result: None) -> Report:
        for result in results:
            tell("PyTorch passes", result)
        info = {"version": "0.1.0", "torch": "2.13", "notes": {"torch": "runs everywhere"}}
        return Report(info, "cpu", results, SPEED, 12.3)

    monkeypatch.setattr(check_run, "run_checks", run_checks)


def test_all_right(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    set_results(monkeypatch, [RIGHT, BITS])
    status, output, errors = run("check")
    assert (status, errors) == (0, "")
    assert output.splitlines()[0] == "PyTorch passes"
    assert "ok      loss " in output and "worst row off by 1.0e-06, allowed 1.0e-03" in output
    assert "no bit differs" in output
    assert "1.50 times as fast; 75 % of the rate of a matrix product" in output
    assert "All 2 checks passed in 12 s on cpu." in output


def test_a_failure_exits_with_1_and_a_block_to_paste(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_results(monkeypatch, [RIGHT, WRONG, LOST])
    status, output, _ = run("check")
    assert status == 1
    assert "FAILED  ids" in output and "(gradient of key, row 7)" in output
    assert "FAILED  pooling" in output and "its process ended with -11" in output
    assert "2 of 3 checks failed. Please paste this into a bug report:" in output
    block = json.loads(output.split("```json")[1].split("```")[0])
    assert block["failed"] == [WRONG, LOST]
    assert block["info"] == {"version": "0.1.0", "torch": "2.13"}


@pytest.mark.parametrize("results", [[RIGHT], [RIGHT, WRONG]], ids=["right", "wrong"])
def test_json(run: Run, results: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    set_results(monkeypatch, results)
    status, output, _ = run("check", "--json")
    report = json.loads(output)
    assert status == (0 if len(results) == 1 else 1)
    assert report["ok"] == (status == 0)
    assert report["results"] == results and report["speed"] == SPEED
    assert report["device"] == "cpu" and report["seconds"] == 12.3


def test_a_speed_that_was_not_measured_is_told(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "SPEED", {"name": "speed", "ok": False, "detail": "no end"})
    set_results(monkeypatch, [RIGHT])
    status, output, _ = run("check")
    assert status == 0 and "not measured: no end" in output
