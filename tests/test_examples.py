"""Every example runs as it is, at its smallest, and is short."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.hosts import load_drop_in

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs_and_has_fewer_than_80_lines(path: Path, tmp_path: Path) -> None:
    assert len(path.read_text().splitlines()) < 80
    for host in re.findall(
        r"^from crossalign\.integrations\.(\w+)", path.read_text(), re.MULTILINE
    ):
        load_drop_in(host)
    threads = {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, path, "--steps", "2"],
        cwd=tmp_path,
        env={**os.environ, **threads},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert any(word in done.stdout for word in ("loss", "accuracy")), done.stdout
