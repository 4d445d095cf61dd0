"""Reports of users of other projects about data that moved, or is not what it seems."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest

from crossalign.data.check import check_pairs
from tests.support.command_cases import Run, assert_one_line
from tests.support.evaluation_cases import write_pawsx


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


PIPE = "PIPE"
BUILD = ["data", "build", "--mode", "translation", "--languages", "en", "de"]
READERS: dict[str, list[object]] = {
    "data build": [*BUILD, "--input", PIPE],
    "data build, instructions": ["data", "build", "--mode", "bilingual", "--languages", "en", "de",
                                 "--input", "records"],
    "data check": ["data", "check", "--pairs", PIPE],
    "data check, two files": ["data", "check", "--pairs", "pairs.tsv", PIPE],
    "data check, items": ["data", "check", "--lm-data", PIPE],
    "align": ["align", "--pairs", PIPE],
    "align, corpora": ["align", "--pairs", f"en-de:{PIPE}"],
    "align, items": ["align", "--pairs", "pairs.tsv", "--lm-data", PIPE],
    "align, evaluation": ["align", "--pairs", "pairs.tsv", "--evaluate-every", 1,
                          "--evaluate-pairs", PIPE],
    "align, settings": ["align", "--pairs", "pairs.tsv", "--config", PIPE],
    "analyze": ["analyze", "--pairs", PIPE],
    "analyze, two files": ["analyze", "--pairs", "pairs.tsv", PIPE],
    "evaluate": ["evaluate", "--tasks", "xcopa", "--languages", "it", "--data", "tasks"],
    "evaluate, check": ["evaluate", "--tasks", "xcopa", "--languages", "it", "--data", "tasks",
                        "--check-data"],
    "demo": ["demo", "--smoke", "--pairs", f"en-de:{PIPE}"],
}  # fmt: skip


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("form", ["named", "substituted"])
def test_a_pipe_is_refused_instead_of_hanging(
    run: Run,
    model_dir: Path,
    pairs_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    reader: str,
    form: str,
) -> None:
    """Kind: inputs that can be read only once. Source: bedtools2#721, prokka#128."""
    monkeypatch.chdir(tmp_path)
    pipe = tmp_path / "pipe.tsv"
    os.mkfifo(pipe)
    holder = os.open(pipe, os.O_RDWR | os.O_NONBLOCK)  # who opens it does not wait, who reads does
    name = f"/dev/fd/{holder}" if form == "substituted" else str(pipe)
    for folder in (tmp_path / "records", tmp_path / "tasks" / "xcopa" / "it"):
        folder.mkdir(parents=True)
    (tmp_path / "records" / "en.json").symlink_to(name)
    (tmp_path / "tasks" / "xcopa" / "it" / "test.it.jsonl").symlink_to(name)
    command = [str(each).replace(PIPE, name) for each in READERS[reader]]
    if reader.partition(",")[0] not in ("data build", "data check") and "check" not in reader:
        command += ["--model", str(model_dir)]
    if "check" not in reader:
        command += ["--output", str(tmp_path / "out.json")]

    def hangs(*_: object) -> None:
        raise AssertionError("it waits for the pipe")

    before = signal.signal(signal.SIGALRM, hangs)
    signal.alarm(60)
    try:
        status, _, error = run(*command)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        os.close(holder)
    assert status == 1
    assert_one_line(error, "is a pipe or device, which can be read only once")
    assert not list(tmp_path.glob("*out*"))


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


def test_a_row_without_a_sentence_is_named(run: Run, tmp_path: Path) -> None:
    """Kind: empty texts. Source: google-research-datasets/paws#4, mteb#1043."""
    write_pawsx(tmp_path / "pawsx", "en")
    path = tmp_path / "pawsx" / "en" / "test_2k.tsv"
    path.write_text(path.read_text().replace("The bridge is old.", ""))
    status, _, error = run(
        *("evaluate", "--check-data", "--data", tmp_path, "--tasks", "pawsx", "--languages", "en")
    )
    assert status == 1
    assert_one_line(error, f"{path}:4: ")
