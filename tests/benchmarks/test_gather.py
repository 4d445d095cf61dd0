"""bench_gather runs at a small size, and measures nothing that is wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_benchmark_runs_at_a_small_size(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.bench_gather"]
    command += ["--ranks", "2", "--repeats", "3", "--case", "5", "16"]
    environment = {**os.environ, "OUT": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = tmp_path.glob("gather_*.jsonl")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    measured = [row for row in rows if row["status"] == "ok"]
    names = {"crossalign collective", "all_gather + reduce_scatter", "all_gather_tensor_autograd"}
    assert names <= {row["implementation"] for row in measured}
    for row in measured:
        assert row["pass"] in ("forward", "backward", "both")
        assert 0 < row["p20_ms"] <= row["median_ms"] <= row["p80_ms"]
        assert row["error"] <= row["error_allowed"]
    assert all(row["status"].startswith("not measured: ") for row in rows if row not in measured)
