"""mypy --strict and pyright see the public types in a file that uses the library."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
USE = ROOT / "tests" / "typed_use.py"


def copied(folder: Path, ignored: bool) -> tuple[Path, set[int]]:
    """The file in a folder of its own; the lines of its mistakes, ignored there or not."""
    lines = USE.read_text().splitlines()
    wrong = {number for number, line in enumerate(lines, 1) if "# type: ignore" in line}
    if not ignored:
        lines = [re.sub(r"  # type: ignore.*", "", line) for line in lines]
    path = folder / "use.py"
    path.write_text("\n".join(lines) + "\n")
    return path, wrong


@pytest.mark.slow
@pytest.mark.parametrize("ignored", [True, False])
def test_mypy_sees_the_types_and_every_mistake(tmp_path: Path, ignored: bool) -> None:
    if importlib.util.find_spec("mypy") is None:
        pytest.skip("mypy is not installed; pip install 'crossalign[dev]'")
    path, wrong = copied(tmp_path, ignored)
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", path.name]
    command += ["--follow-imports=silent", "--cache-dir", str(ROOT / ".mypy_cache" / "user")]
    environment = os.environ | {"MYPYPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    found = {int(line) for line in re.findall(r"^use\.py:(\d+): error", done.stdout, re.MULTILINE)}
    assert found == (set() if ignored else wrong), done.stdout + done.stderr
    assert wrong


@pytest.mark.slow
def test_pyright_sees_the_types_and_every_mistake(tmp_path: Path) -> None:
    program = next(filter(None, map(shutil.which, ("pyright", "basedpyright"))), None)
    if program is None:
        pytest.skip("needs pyright or basedpyright; pip install 'crossalign[types]'")
    path, wrong = copied(tmp_path, ignored=False)
    settings = {"typeCheckingMode": "standard", "extraPaths": [str(ROOT)]}
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings))
    command = [program, "--outputjson", "--pythonpath", sys.executable, path.name]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    told = json.loads(done.stdout)["generalDiagnostics"]
    errors = [each for each in told if each["severity"] == "error"]
    assert {each["range"]["start"]["line"] + 1 for each in errors} == wrong, errors
