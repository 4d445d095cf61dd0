"""Damaged records and settings of a run: config.yaml, metrics.jsonl, evaluations.jsonl."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

from crossalign.alignment.records import keep_until
from tests.support.command_cases import Run, assert_one_line, metrics_of


def test_foreign_and_missing_records_are_named(
    align: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert align()[0] == 0
    path = tmp_path / "out" / "metrics.jsonl"
    copy = tmp_path / "out" / "checkpoints" / "step-6" / "metrics.jsonl"
    before = metrics_of(tmp_path / "out")
    lines = path.read_text().splitlines()
    spoiled = "\n".join([lines[0], "[1]", *lines[2:4], "slurm: job 7", *lines[4:]]) + "\n"
    path.write_text(spoiled)
    assert align("--resume", "--steps", 7)[0] == 0
    assert caplog.records[0].message == (
        f"{path}: damaged: line 2 is no record of a step and the record of step 2 is missing "
        f"(3 such faults); it is restored from {copy}, and the file as it was is {path}.damaged"
    )
    assert metrics_of(tmp_path / "out")[:6] == before
    assert path.with_name("metrics.jsonl.damaged").read_text() == spoiled


def test_settings_that_changed_on_the_disk_are_refused(align: Run, tmp_path: Path) -> None:
    """One flipped bit, and the file is still valid YAML."""
    assert align()[0] == 0
    path = tmp_path / "out" / "config.yaml"
    settings = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({**settings, "temperature": 0.07}))
    status, _, error = align("--resume", "--steps", 8, "--temperature", 0.07)
    assert status == 1
    copy = tmp_path / "out" / "checkpoints" / "step-6" / "config.yaml"
    assert_one_line(error, f"{path}: temperature is 0.07, but the run to resume has 0.05")
    assert f"{copy} holds the settings of the run" in error
    shutil.copy(copy, path)
    assert align("--resume", "--steps", 8)[0] == 0


@pytest.mark.parametrize("damage", ["cut", "one bit", "emptied", "gone"])
def test_damaged_settings_name_the_copy_that_a_checkpoint_has(
    align: Run, run: Run, tmp_path: Path, damage: str
) -> None:
    """Half a file was valid YAML without --steps: the run would have gone on to step 1000."""
    assert align()[0] == 0
    path = tmp_path / "out" / "config.yaml"
    content = path.read_text()
    damaged = {
        "cut": content[: content.index("steps:")],
        "one bit": content.replace("steps: 6", "steps: 7"),
        "emptied": "",
    }
    path.unlink() if damage == "gone" else path.write_text(damaged[damage])
    status, _, error = run("align", "--resume", "--output", tmp_path / "out")
    assert status == 1
    copy = tmp_path / "out" / "checkpoints" / "step-6" / "config.yaml"
    assert_one_line(error, f"{path}: ", f"{copy} holds the settings of the run: copy it to {path}")
    shutil.copy(copy, path)
    assert run("align", "--resume", "--output", tmp_path / "out")[0] == 0
    assert path.read_text() == content


def test_a_flipped_digit_in_the_records_is_noticed_and_mended(
    align: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It was still JSON, and the loss of another run."""
    assert align()[0] == 0
    path, before = tmp_path / "out" / "metrics.jsonl", metrics_of(tmp_path / "out")
    path.write_text(path.read_text().replace('"loss": ', '"loss": 1', 1))
    assert align("--resume")[0] == 0
    copy = tmp_path / "out" / "checkpoints" / "step-6" / "metrics.jsonl"
    assert [record.message for record in caplog.records] == [
        f"{path}: damaged: not what was written; it is restored from {copy}, and the file as it "
        f"was is {path}.damaged"
    ]
    assert metrics_of(tmp_path / "out") == before
    path.write_text("")  # of a run that has no step left to make
    assert align("--resume")[0] == 0
    assert metrics_of(tmp_path / "out") == before


def test_records_are_restored_and_later_ones_are_no_damage(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    names, saved = ("metrics.jsonl", "evaluations.jsonl"), tmp_path / "step-1"
    saved.mkdir()
    for name in names:
        (saved / name).write_text('{"step": 1}\n')
        (tmp_path / name).write_text('{"step": 1}\n{"step": 2}\n{"st')
    keep_until(tmp_path, 1, saved)
    assert not caplog.records
    assert all((tmp_path / name).read_text() == '{"step": 1}\n' for name in names)
    for count in (1, 2):
        (tmp_path / names[0]).write_text("no record\n")
        (tmp_path / names[1]).unlink()
        keep_until(tmp_path, 1, saved)
        assert len(list(tmp_path.glob("metrics.jsonl.damaged*"))) == count
        assert all((tmp_path / name).read_text() == '{"step": 1}\n' for name in names)
    assert f"restored from {saved / names[1]}, and it was gone" in caplog.text
