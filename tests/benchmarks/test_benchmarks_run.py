"""Every benchmark runs at its smallest size; the harness refuses, measures and reports honestly."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import report
from benchmarks.accuracy import Verdict, relative_error
from benchmarks.contrastive_cases import COMPILED, PRESETS, Case, Inputs, make_inputs
from benchmarks.contrastive_implementations import implementation
from benchmarks.harness import PASSES, Harness, Work
from benchmarks.resident_memory import peak_resident_mib
from benchmarks.timing import Trial
from benchmarks.train_step_cases import PRESETS as STEP_PRESETS

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
RIGHT = Verdict(0.0, 1.0)
PROMISED = {
    *("error", "error_allowed", "median_ms", "p20_ms", "p80_ms", "repeats", "peak_mib", "tflops"),
    *("gbps", "share_of_ceiling", "matrix_tflops", "copy_gbps", "dtype", "implementation", "pass"),
}
RUN_PROMISED = {"commit", "dirty", "date", "device", "python", "torch", "triton", "cuda", "subject"}


def run_module(name: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", f"benchmarks.{name}", *arguments]
    return subprocess.run(
        command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True
    )


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("name", ["bench_contrastive", "bench_pooling"])
def test_benchmark_runs_at_its_smallest_size(name: str, tmp_path: Path) -> None:
    done = run_module(name, "--device", "cpu", "--seconds", "0.001", OUT=str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = tmp_path.glob(f"{name.removeprefix('bench_')}_*.jsonl")
    rows = read(path)
    measured = [row for row in rows if row["status"] == "ok"]
    assert {"crossalign", "eager"} <= {row["implementation"] for row in measured}
    for row in measured:
        assert row.keys() >= PROMISED
        assert row["run"].keys() >= RUN_PROMISED
        assert 0 < row["p20_ms"] <= row["median_ms"] <= row["p80_ms"]
        assert row["error"] <= row["error_allowed"]
    missing = {row["status"] for row in rows} - {"ok"}
    assert missing <= {"not measured: not installed"}


def test_every_preset_names_known_options_and_implementations() -> None:
    for cases in PRESETS.values():
        for case in cases():
            make_inputs(case.resized(8), CPU)
            for name in case.implementations:
                if name.startswith(COMPILED):  # making it starts compiling
                    continue
                assert callable(implementation(name, case.symmetric))


def make_harness(tmp_path: Path, **options: float) -> Harness:
    return Harness("test", "cpu", tmp_path / "rows.jsonl", seconds=0.001, **options)


def measure(
    harness: Harness, forward: Callable[[], torch.Tensor], verdict: Verdict, name: str
) -> dict[str, Any]:
    work = {"forward": Work(1e6, 1e6)}
    harness.measure({}, name, [Trial(forward, [])], torch.float32, work, lambda: verdict)
    return read(harness.path)[-1]


def test_a_wrong_implementation_is_not_timed(tmp_path: Path) -> None:
    harness = make_harness(tmp_path)
    for verdict in (Verdict(0.2, 0.1), Verdict(float("nan"), 0.1)):
        row = measure(harness, lambda: torch.zeros(1), verdict, "crossalign")
        assert row["status"] == "wrong: not timed"
        assert "median_ms" not in row
    assert harness.close()
    assert measure(make_harness(tmp_path), lambda: torch.zeros(1), RIGHT, "x")["status"] == "ok"


def test_out_of_memory_is_a_result(tmp_path: Path) -> None:
    harness = make_harness(tmp_path)
    row = measure(harness, lambda: torch.empty(2**58, dtype=torch.uint8), RIGHT, "crossalign")
    assert row["status"] == "out of memory"
    assert harness.close() is None


def test_a_failure_is_a_row_and_fails_the_run_only_if_it_is_ours(tmp_path: Path) -> None:
    def broken() -> torch.Tensor:
        raise ZeroDivisionError("no such kernel")

    harness = make_harness(tmp_path)
    row = measure(harness, broken, RIGHT, "a peer")
    assert row["status"] == "failed: ZeroDivisionError: no such kernel"
    assert harness.close() is None
    measure(harness, broken, RIGHT, "crossalign")
    assert "no such kernel" in (harness.close() or "")


def test_an_implementation_that_takes_too_long_leaves_time_for_the_others(tmp_path: Path) -> None:
    harness = make_harness(tmp_path, row_seconds=0.05)

    def check() -> Verdict:
        time.sleep(60)
        raise AssertionError("nobody stopped this")

    harness.measure({}, "a peer", [], torch.float32, {}, check)
    (row,) = read(harness.path)
    assert row["status"] == "failed: TimeoutError: took more than 0 s"


def test_no_measurement_starts_after_the_budget(tmp_path: Path) -> None:
    row = measure(make_harness(tmp_path, budget_seconds=-1), lambda: torch.zeros(1), RIGHT, "x")
    assert row["status"] == "not measured: out of the time budget"


def test_one_lost_row_is_an_error_of_about_one() -> None:
    truth = torch.randn(1000, 8, dtype=torch.float64)
    lost = truth.clone()
    lost[17] = 0
    assert relative_error([truth.float()], [truth]) < 1e-6
    assert 0.3 < relative_error([lost], [truth]) < 3
    lost[17] = torch.nan
    assert relative_error([lost], [truth]) == float("inf")


def test_peak_memory_counts_what_a_call_holds_at_most() -> None:
    def hold(mib: int) -> Callable[[], int]:
        return lambda: torch.ones(mib, 2**20, dtype=torch.uint8).numel()

    def nothing() -> None: ...

    for mib in (64, 256):
        peak = peak_resident_mib(nothing, hold(mib))
        if peak is None:
            pytest.skip("this machine has no /proc/self/clear_refs")
        assert mib - 1 < peak < mib + 16  # a page that was warm already is not counted


def test_the_loss_holds_a_tenth_of_what_plain_pytorch_holds() -> None:
    case = Case("cpu", 8192, 32, (), "float32", symmetric=False)

    def peak(name: str) -> float:
        loss = implementation(name, case.symmetric)

        def step(inputs: Inputs) -> None:
            torch.autograd.grad(loss(inputs), inputs.leaves)

        step(make_inputs(case.resized(64), CPU))
        inputs = make_inputs(case, CPU)
        mib = peak_resident_mib(lambda: None, lambda: step(inputs))
        if mib is None:
            pytest.skip("this machine has no /proc/self/clear_refs")
        return mib

    assert peak("crossalign") <= peak("eager") / 10


def result_file(folder: Path, **changes: Any) -> Path:
    """One CPU case of the report as the harness writes it: ours 10 ms, eager 40 ms."""
    row = {
        **{"n": 8192, "d": 256, "dtype": "float32", "symmetric": True, "option": "plain"},
        **{"pass": "both", "status": "ok", "share_of_ceiling": 0.5, "peak_mib": 20.0},
        "run": {
            **{"subject": "contrastive", "commit": "abcdef123456", "dirty": False},
            **{"date": "2026-01-01T00:00:00Z", "device": "some CPU", "threads": 2},
        },
    }
    ours = {**row, "implementation": "crossalign", "median_ms": 10.0, **changes}
    plain = {**row, "implementation": "eager", "median_ms": 40.0, "peak_mib": 400.0}
    path = folder / "contrastive_some-cpu.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in (ours, plain)))
    return path


def test_report_has_a_line_for_every_case_of_a_train_step(tmp_path: Path) -> None:
    case = STEP_PRESETS["cpu"][0]
    row = {
        **case._asdict(),
        **{"pass": "step", "status": "ok", "share_of_ceiling": 0.5, "peak_mib": 20.0},
        **{"implementation": "crossalign", "median_ms": 500.0},
        "run": {
            **{"subject": "train_step", "commit": "abcdef123456", "dirty": True},
            **{"date": "2026-01-01T00:00:00Z", "device": "some CPU", "threads": 2},
        },
    }
    path = tmp_path / "train_step.jsonl"
    eager = {**row, "implementation": "eager", "median_ms": 2000.0, "peak_mib": 80.0}
    path.write_text("".join(json.dumps(line) + "\n" for line in (row, eager)))
    tables = report.render(report.read_results([path]))
    title = f"float32, 24 blocks of width 256, {case.name}, 2 texts of 128"
    assert "| 0.25 of the time, 0.250 of the memory |" in line_of(tables, title)
    other = f"float32, 24 blocks of width 256, {STEP_PRESETS['cpu'][1].name}, 2 texts of 128"
    assert line_of(tables, other).count("not measured") == 3


def test_report_compares_the_gather_with_the_collectives_of_the_same_run(tmp_path: Path) -> None:
    names = ("crossalign extension", "crossalign collective", "all_gather + reduce_scatter")
    run = {"subject": "gather", "commit": "abcdef123456", "dirty": False, "threads": 1}
    run |= {"date": "2026-01-01T00:00:00Z", "device": "some CPU"}
    row = {"ranks": 2, "rows": 2048, "columns": 1024, "dtype": "float32", "status": "ok"}
    path = tmp_path / "gather.jsonl"
    path.write_text(
        "".join(
            json.dumps({**row, "implementation": name, "pass": which, "median_ms": ms, "run": run})
            + "\n"
            for name, ms in zip(names, (5.0, 8.0, 20.0), strict=True)
            for which, ms in (("forward", 1.0), ("both", ms))
        )
    )
    line = line_of(
        report.render(report.read_results([path])), "float32, 2 ranks of 2,048 rows of 1,024"
    )
    assert "| 5 ms | 8 ms | 20 ms | not measured | 0.25 of the time |" in line


def line_of(tables: str, case: str) -> str:
    (line,) = re.findall(rf"^\| {re.escape(case)} \|.*$", tables, flags=re.MULTILINE)
    return line


def test_report_fills_what_was_measured_and_says_what_was_not(tmp_path: Path) -> None:
    tables = report.render(report.read_results([result_file(tmp_path)]))
    line = line_of(tables, "float32, N = 8,192, D = 256, symmetric")
    assert "| 10 ms, 20 MiB, 50% of the ceiling | 40 ms, 400 MiB | not measured |" in line
    assert "0.25 of the time, 0.050 of the memory" in line
    assert "[some CPU, abcdef1](contrastive_some-cpu.jsonl)" in line
    other = line_of(tables, "float32, N = 16,384, D = 256, symmetric")
    assert other.count("not measured") == 4


def test_a_newer_file_without_a_comparison_replaces_none(tmp_path: Path) -> None:
    compared = result_file(tmp_path).rename(tmp_path / "contrastive_compared.jsonl")
    newer = result_file(tmp_path)
    ours = newer.read_text().splitlines()[0].replace("2026-01-01", "2026-01-02")
    newer.write_text(ours.replace("10.0", "9.0") + "\n")
    for paths, took in (([compared, newer], "10 ms"), ([newer], "9 ms")):
        tables = report.render(report.read_results(paths))
        assert f"| {took}, 20 MiB" in line_of(tables, "float32, N = 8,192, D = 256, symmetric")


def test_report_shows_a_status_instead_of_a_number(tmp_path: Path) -> None:
    path = result_file(tmp_path, status="out of memory")
    line = line_of(
        report.render(report.read_results([path])), "float32, N = 8,192, D = 256, symmetric"
    )
    assert "| out of memory | 40 ms, 400 MiB | not measured | - |" in line


def test_the_readme_shows_what_the_result_files_say() -> None:
    done = run_module("report", "--check")
    assert done.returncode == 0, done.stderr


def test_plots_are_drawn_from_a_result_file(tmp_path: Path) -> None:
    path = result_file(tmp_path)
    done = run_module("plots", str(path), "--output", str(tmp_path / "plots"))
    assert done.returncode == 0, done.stderr
    names = {png.name for png in (tmp_path / "plots").glob("*.png")}
    assert names == {f"contrastive_some-cpu_{kind}.png" for kind in ("n", "d", "ratio")}


def test_passes_are_those_of_the_presets() -> None:
    used = {name for cases in PRESETS.values() for case in cases() for name in case.passes}
    assert used == set(PASSES)
