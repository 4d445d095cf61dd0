"""No command destroys a file: inputs are no outputs, and what is there stays unless asked for."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import pytest

from tests.support.command_cases import Run, assert_one_line


@pytest.fixture
def records(tmp_path: Path) -> Path:
    folder = tmp_path / "records"
    folder.mkdir()
    for code in ("en", "de"):
        rows = [{"id": i, "instruction": f"{code} {i}", "output": "o"} for i in range(3)]
        (folder / f"{code}.json").write_text(json.dumps(rows))
    return folder


@pytest.mark.parametrize("link", [None, "hard", "soft"])
def test_data_build_does_not_replace_its_input(
    run: Run, pairs_file: Path, tmp_path: Path, link: str | None
) -> None:
    output, before = pairs_file, pairs_file.read_text()
    if link is not None:
        output = tmp_path / "link.tsv"
        (output.hardlink_to if link == "hard" else output.symlink_to)(pairs_file)
    command: list[object] = ["data", "build", "--mode", "translation", "--languages", "en", "de"]
    command += ["--input", pairs_file, "--output", output, "--overwrite"]
    status, _, error = run(*command)
    assert status == 2
    assert_one_line(error, "is read as an input", "name another output")
    assert pairs_file.read_text() == before


def test_data_build_does_not_write_into_the_folder_that_it_reads(run: Run, records: Path) -> None:
    command: list[object] = ["data", "build", "--mode", "bilingual", "--languages", "en", "de"]
    command += ["--input", records, "--overwrite", "--output"]
    before = (records / "en.json").read_text()
    for name, message in (
        ("en.json", "which is read"),
        ("mixed.fr.jsonl", "would be read as instructions of --input the next time"),
    ):
        status, _, error = run(*command, records / name)
        assert status == 2
        assert_one_line(error, message)
    assert (records / "en.json").read_text() == before
    assert len(list(records.iterdir())) == 2


def test_an_existing_file_stays_unless_it_is_to_be_overwritten(
    run: Run, records: Path, tmp_path: Path
) -> None:
    output = tmp_path / "items.jsonl"
    output.write_text("notes\n")
    command: list[object] = ["data", "build", "--mode", "bilingual", "--languages", "en", "de"]
    command += ["--input", records, "--output", output]
    status, _, error = run(*command)
    assert status == 1
    assert_one_line(error, "items.jsonl: exists; name another output, or add --overwrite")
    assert output.read_text() == "notes\n"
    assert run(*command, "--overwrite")[0] == 0
    assert len(output.read_text().splitlines()) == 9


def test_analyze_does_not_write_where_it_reads(
    run: Run, pairs_file: Path, tmp_path: Path, model_dir: Path
) -> None:
    status, _, error = run(
        *("analyze", "--model", model_dir, "--pairs", pairs_file, "--output", pairs_file)
    )
    assert status == 2
    assert_one_line(error, "is read as an input")


def test_analyze_replaces_earlier_results_only_where_told_to(
    run: Run, pairs_file: Path, tmp_path: Path, model_dir: Path
) -> None:
    output = tmp_path / "out"
    command = ["analyze", "--model", model_dir, "--pairs", pairs_file, "--layers", 1]
    command += ["--output", output]
    assert run(*command)[0] == 0
    names = {path.name for path in output.iterdir()}
    (output / "report.html").write_text("read this")
    status, _, error = run(*command)
    assert status == 1
    assert_one_line(error, "holds earlier results; name another output, or add --overwrite")
    assert (output / "report.html").read_text() == "read this"
    assert run(*command, "--overwrite")[0] == 0
    assert {path.name for path in output.iterdir()} == names
    assert (output / "report.html").read_text() != "read this"
    (output / "thesis.tex").write_text("mine")
    status, _, error = run(*command, "--overwrite")
    assert status == 1
    assert_one_line(error, "must be new, empty or hold earlier results only, but has thesis.tex")


def test_demo_replaces_an_earlier_demo_only_where_told_to(run: Run, tmp_path: Path) -> None:
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "report.html").write_text("of an earlier demo")
    status, _, error = run("demo", "--smoke", "--output", tmp_path / "demo")
    assert status == 1
    assert_one_line(error, "holds earlier results; name another output, or add --overwrite")
    assert (tmp_path / "demo" / "report.html").read_text() == "of an earlier demo"


def test_align_reads_nothing_that_lies_in_its_output(
    align: Run, pairs_file: Path, tmp_path: Path
) -> None:
    inside = tmp_path / "out" / "p.tsv"
    inside.parent.mkdir()
    shutil.copy(pairs_file, inside)
    (tmp_path / "link.tsv").symlink_to(inside)
    for path in (inside, tmp_path / "link.tsv"):
        status, _, error = align("--pairs", path)
        assert status == 2
        assert_one_line(error, f"{path} is read as an input, but is in {tmp_path / 'out'}")
    assert inside.read_text() == pairs_file.read_text()


def test_a_tracker_that_is_not_installed_is_named_before_the_model_is_loaded(
    align: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "wandb" else find(name)
    )
    status, _, error = align("--trackers", "wandb", "--model", "/no/such/model")
    assert status == 1
    assert_one_line(error, "trackers: wandb is not installed; pip install wandb")
