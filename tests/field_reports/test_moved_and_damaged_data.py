"""Reports of users of other projects about data that moved, or is not what it seems."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from crossalign.data.check import check_pairs
from tests.support.command_cases import Run, assert_one_line


def test_data_that_moved_goes_on_and_other_data_does_not(
    run: Run, align: Run, pairs_file: Path, tmp_path: Path
) -> None:
    """Kind: absolute paths in a checkpoint. Source: ray#28082."""
    assert align("--steps", 1)[0] == 0
    moved = tmp_path / "moved.tsv"
    shutil.move(pairs_file, moved)
    resume = ["align", "--output", tmp_path / "out", "--resume", "--steps", 2, "--pairs", moved]
    status, _, error = run(*resume)
    assert status == 0, error
    moved.write_text(moved.read_text().replace("w3", "w4"))
    status, _, error = run(*resume[:-4], "--steps", 3, "--pairs", moved)
    assert status == 1
    assert_one_line(
        error, "the pairs (--pairs), or their languages, are not those that this run was trained on"
    )


def test_a_pipe_is_refused_instead_of_hanging(run: Run, tmp_path: Path) -> None:
    """Kind: inputs that can be read only once. Source: bedtools2#721."""
    os.mkfifo(tmp_path / "pipe.tsv")
    command = ["data", "build", "--mode", "translation", "--languages", "en", "de"]
    status, _, error = run(
        *command, "--input", tmp_path / "pipe.tsv", "--output", tmp_path / "items.jsonl"
    )
    assert status == 1
    assert_one_line(error, "is a pipe or device, which can be read only once")


def test_an_input_is_not_replaced_by_the_output(run: Run, pairs_file: Path) -> None:
    """Kind: commands that write a file look at nothing. Source: python-ftfy#78."""
    before = pairs_file.read_text()
    command = ["data", "build", "--mode", "translation", "--languages", "en", "de"]
    status, _, error = run(*command, "--input", pairs_file, "--output", pairs_file)
    assert status == 2
    assert_one_line(error, "is read as an input")
    assert pairs_file.read_text() == before


def test_a_stray_tab_is_reported(tmp_path: Path) -> None:
    """Kind: columns that shift. Source: mozilla/translations#1055."""
    path = tmp_path / "p.tsv"
    path.write_text("a\tb\nc\td\te\nf\tg\n")
    doubtful = check_pairs([path], max_ratio=5)["doubtful"]
    assert doubtful["3 columns, where most lines have 2"]["first"] == [f"{path}:2"]
