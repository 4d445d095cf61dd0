"""benchmarks/h200.sh without a GPU: it says so; and which stages it runs, with programs that only
say what they are asked."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_the_gpu_script_says_that_there_is_no_gpu(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHON": sys.executable, "OUT": str(tmp_path)}
    done = subprocess.run(
        ["bash", ROOT / "benchmarks" / "h200.sh"], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "finds no NVIDIA GPU here; nothing was measured" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("stages", "code"), [(["check", "headline"], 0), (["check", "warmup"], 2), ([], 0)]
)
def test_the_gpu_script_runs_the_stages_that_are_named(
    stages: list[str], code: int, tmp_path: Path
) -> None:
    """With a Python and an nvidia-smi that only say what they are asked."""
    programs, out = tmp_path / "bin", tmp_path / "out"
    programs.mkdir()
    for name in ("python", "nvidia-smi"):
        (programs / name).write_text(f'#!/bin/sh\necho "{name} $*"\n')
        (programs / name).chmod(0o755)
    environment = os.environ | {"PYTHON": str(programs / "python"), "OUT": str(out)}
    environment["PATH"] = f"{programs}:{environment['PATH']}"
    done = subprocess.run(
        ["bash", ROOT / "benchmarks" / "h200.sh", *stages],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == code, done.stderr
    if code:
        assert "no stage is called warmup; the stages are: environment check" in done.stderr
        return
    log = (out / "h200.log").read_text()
    started = re.findall(r"^== (\S+), at most \d+ s", log, flags=re.MULTILINE)
    if stages:
        assert started == stages
        assert "benchmarks.bench_contrastive --preset h200" in log
        assert (out / "check.json").read_text() == "python -m crossalign check --json\n"
    else:
        assert started[:3] == ["environment", "check", "headline"]
        assert started[-1] == "train_step" and "tests" in started
        assert "tests/kernels tests/contrastive tests/pooling tests/distributed" in log
