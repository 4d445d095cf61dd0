"""One output has one command at a time, and a command that is stopped leaves nothing of its own."""

from __future__ import annotations

import os
import signal
import tempfile
from pathlib import Path

import pytest

from crossalign.files.lock import held
from tests.support.command_cases import Run, assert_one_line


def commands(output: Path, model: Path, pairs: Path) -> dict[str, list[object]]:
    build: list[object] = ["data", "build", "--mode", "translation", "--languages", "en", "de"]
    evaluate: list[object] = ["evaluate", "--tasks", "xcopa", "--languages", "it"]
    evaluate += ["--model", model, "--data", output.parent]
    return {
        "data build": [*build, "--input", pairs, "--output", output],
        "evaluate": [*evaluate, "--output", output.with_name("out.json")],
        "analyze": ["analyze", "--model", model, "--pairs", pairs, "--output", output],
        "demo": ["demo", "--smoke", "--output", output],
    }


@pytest.mark.parametrize("command", ["data build", "evaluate", "analyze", "demo"])
def test_a_second_start_is_told_who_is_there(
    run: Run, model_dir: Path, pairs_file: Path, tmp_path: Path, command: str
) -> None:
    """Both ran to their end, and the later one took the place of the earlier one's result."""
    output = tmp_path / "new" / "out"
    name = "out"
    if command in ("data build", "evaluate"):
        output.parent.mkdir()
        name = "out.items.jsonl" if command == "evaluate" else "out"
    before = {path.name for path in tmp_path.iterdir()}
    with held(output.with_name(name)):
        status, _, error = run(*commands(output, model_dir, pairs_file)[command])
    assert status == 1
    assert_one_line(error, f"in use by process {os.getpid()}; wait for it, or stop it")
    assert {path.name for path in tmp_path.iterdir()} == before
    assert not output.parent.exists() or not list(output.parent.iterdir())


@pytest.mark.parametrize("command", ["data build", "analyze"])
def test_sigterm_leaves_nothing(
    run: Run,
    model_dir: Path,
    pairs_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
) -> None:
    """Temporary files in the folder of the output stayed for ever."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    before = {path.name for path in tmp_path.iterdir()}

    def terminated(*_: object, **__: object) -> None:
        assert {path.name for path in tmp_path.iterdir()} > before
        os.kill(os.getpid(), signal.SIGTERM)

    middle = {"data build": "files.output.put_in_place", "analyze": "analysis.run.write_results"}
    monkeypatch.setattr(f"crossalign.{middle[command]}", terminated)
    status, _, error = run(*commands(tmp_path / "out", model_dir, pairs_file)[command])
    assert status == 128 + signal.SIGTERM
    assert_one_line(error, "crossalign: stopped by SIGTERM")
    assert {path.name for path in tmp_path.iterdir()} == before
    assert not list((tmp_path / "tmp").iterdir())


def test_a_folder_that_takes_no_file_is_named(
    run: Run, model_dir: Path, pairs_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even of the lock's file, which is the first that is made there."""

    def refused(path: object, *_: object) -> int:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("crossalign.files.lock.os.open", refused)
    status, _, error = run(*commands(tmp_path / "out", model_dir, pairs_file)["data build"])
    assert status == 1
    assert_one_line(error, f"{tmp_path / 'out'}: {tmp_path} may not be written to; name another")
