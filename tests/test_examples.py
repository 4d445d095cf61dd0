"""Every example runs as it is, at its smallest, and is short."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from tests.support.hosts import load_drop_in

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))
STARTS_PROCESSES = {"two_processes"}  # which import the example, so it must be a program


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs_and_has_fewer_than_80_lines(
    path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert len(path.read_text().splitlines()) < 80
    for host in re.findall(
        r"^from crossalign\.integrations\.(\w+)", path.read_text(), re.MULTILINE
    ):
        load_drop_in(host)
    monkeypatch.chdir(tmp_path)
    if path.stem in STARTS_PROCESSES:
        out = output_of_program(path)
    else:
        monkeypatch.setattr(sys, "argv", [str(path), "--steps", "2"])
        torch.use_deterministic_algorithms(False)
        with warnings.catch_warnings():
            warnings.simplefilter("default")
            runpy.run_path(str(path), run_name="__main__")
        out = capsys.readouterr().out
    assert any(word in out for word in ("loss", "accuracy")), out


def output_of_program(path: Path) -> str:
    threads = {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, path, "--steps", "2"],
        env={**os.environ, **threads},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
