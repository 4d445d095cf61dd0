"""The two commands say in one line what is missing, and leave nothing half-made behind."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")


def make_test(tmp_path: Path, python: str) -> subprocess.CompletedProcess[str]:
    """`make test` in a folder that has no .venv yet."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    command = ["make", "test", f"PYTHON={python}"]
    return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)


def fake_python(tmp_path: Path, script: str) -> str:
    path = tmp_path / "fake_python"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def test_missing_python_is_named(tmp_path: Path) -> None:
    done = make_test(tmp_path, "no-such-python")
    assert done.returncode != 0
    assert "make: no no-such-python here; install Python 3.11 or newer" in done.stderr


def test_too_old_python_is_named(tmp_path: Path) -> None:
    python = fake_python(tmp_path, '[ "$1" = --version ] && echo Python 3.8.9 && exit 0; exit 1')
    done = make_test(tmp_path, python)
    assert done.returncode != 0
    assert f"needs Python 3.11 or newer, {python} is Python 3.8.9" in done.stderr


def test_missing_venv_module_is_named(tmp_path: Path) -> None:
    """The first question, for the version, is answered; the second, for venv, is not."""
    python = fake_python(tmp_path, 'case "$2" in *venv*) exit 1;; esac; exit 0')
    done = make_test(tmp_path, python)
    assert done.returncode != 0
    assert "has no venv module; on Debian or Ubuntu: apt-get install python3-venv" in done.stderr


def test_an_environment_that_could_not_be_made_is_removed(tmp_path: Path) -> None:
    script = 'case "$*" in "-m venv .venv") mkdir -p .venv/bin; exit 1;; esac; exit 0'
    done = make_test(tmp_path, fake_python(tmp_path, script))
    assert done.returncode != 0
    assert not (tmp_path / ".venv").exists()
