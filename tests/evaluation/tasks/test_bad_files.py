"""Task files that are missing, cut off or malformed: each is named with its line."""

from __future__ import annotations

import gzip
import re
from pathlib import Path

import pytest

from crossalign.evaluation.tasks.files import read_split
from crossalign.evaluation.tasks.release import MissingFileError
from crossalign.files.text import DataError
from tests.support.evaluation_cases import NLI, STORY_HEADER, write_tasks, write_tsv

XNLI = "xnli/test-en.tsv"
PAWSX = "pawsx/en/test_2k.tsv"
XCOPA = "xcopa/zh/test.zh.jsonl"
XWINOGRAD = "xwinograd/xwinograd.en.tsv"


def damage(path: Path, line: int, old: str, new: str) -> None:
    lines = path.read_text().split("\n")
    assert old in lines[line - 1]
    lines[line - 1] = lines[line - 1].replace(old, new, 1)
    path.write_text("\n".join(lines))


@pytest.mark.parametrize(
    ("task", "path", "line", "old", "new", "message"),
    [
        ("xnli", XNLI, 2, "\t", " ", ":2: 2 columns expected, got 1"),
        ("xnli", XNLI, 1, "\t", "\tx\ty\t", ":1: 2 or 3 columns expected, got 4"),
        ("xnli", "xnli/test-labels.tsv", 3, "entail", "retail", ":3: label must be one of entail"),
        ("xnli", XNLI, 4, "The cat sleeps.", " ", ":4: premise is empty"),
        ("pawsx", PAWSX, 1, "sentence2", "s2", ":1: the header lacks the column"),
        ("pawsx", PAWSX, 4, "\t0", "", ":4: 4 columns expected, got 3"),
        ("pawsx", PAWSX, 4, "\t0", "\t2", ":4: label must be one of 0, 1, got"),
        ("xcopa", XCOPA, 2, "}", "", ":2: not valid JSON"),
        ("xcopa", XCOPA, 3, '"label": 0', '"label": 2', ":3: label must be one"),
        ("xcopa", XCOPA, 3, '"label": 0', '"label": "0"', ":3: .label. must be"),
        ("xcopa", XCOPA, 5, "choice2", "choice3", ":5: the key .choice2. is miss"),
        ("xcopa", XCOPA, 1, '"effect"', '"why"', ":1: question must be one of"),
        ("xwinograd", XWINOGRAD, 2, "\t?\t", "\t", ":2: 7 columns expected, got 6"),
        ("xwinograd", XWINOGRAD, 2, "[6, 7]", "[5, 6]", ":2: the pronoun 'it' is"),
        ("xwinograd", XWINOGRAD, 2, "[6, 7]", "[6, 77]", ":2: not a row of XWin"),
        ("xwinograd", XWINOGRAD, 2, "hit the", "hit a", ":2: not a row of XWin"),
        ("xwinograd", XWINOGRAD, 1, "false", "true", ":1: one of the two candid"),
    ],
)  # fmt: skip
def test_malformed_row_is_named_with_its_line(
    tmp_path: Path, task: str, path: str, line: int, old: str, new: str, message: str
) -> None:
    write_tasks(tmp_path)
    damage(tmp_path / path, line, old, new)
    with pytest.raises(DataError, match=re.escape(str(tmp_path / path)) + message):
        read_split(tmp_path, task, "zh" if task == "xcopa" else "en", "test")


def test_cut_off_files_are_named(tmp_path: Path) -> None:
    write_tasks(tmp_path, ["en"])
    path = tmp_path / "xnli" / "test-en.tsv"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:4]))
    with pytest.raises(
        DataError, match=r"test-en\.tsv:4: cut off, or other than its labels: 4 row"
    ):
        read_split(tmp_path, "xnli", "en", "test")
    folder = tmp_path / "pawsx" / "en"
    (folder / "test_2k.tsv").rename(folder / "test_2k.first9.tsv")
    with pytest.raises(DataError, match=r"first9\.tsv:6: cut off: 6 rows, the name says 9"):
        read_split(tmp_path, "pawsx", "en", "test")
    story = tmp_path / "xstorycloze" / "spring2016.val.en.tsv.split_20_80_eval.tsv"
    write_tsv(story, [], STORY_HEADER)
    with pytest.raises(DataError, match=r"eval\.tsv:1: cut off: no rows below the header"):
        read_split(tmp_path, "xstorycloze", "en", "test")
    packed = path.with_suffix(".tsv.gz")
    packed.write_bytes(gzip.compress(b"a\tb\n" * 500)[:-9])
    path.unlink()
    with pytest.raises(DataError, match=r"test-en\.tsv\.gz: not a whole gzip file"):
        read_split(tmp_path, "xnli", "en", "test")


def test_missing_files_and_languages_are_named(tmp_path: Path) -> None:
    with pytest.raises(
        MissingFileError, match=r"no file test-en\.tsv or xnli\.test\.tsv .*folders"
    ):
        read_split(tmp_path, "xnli", "en", "test")
    write_tsv(tmp_path / "test-en.tsv", [row[:2] for row in NLI])
    with pytest.raises(MissingFileError, match=r"no file test-labels\.tsv"):
        read_split(tmp_path, "xnli", "en", "test")
    with pytest.raises(DataError, match="nowhere: no such folder"):
        read_split(tmp_path / "nowhere", "xnli", "en", "test")
    with pytest.raises(ValueError, match='xcopa has no language "de"; it has en et ht'):
        read_split(tmp_path, "xcopa", "de", "test")
    with pytest.raises(ValueError, match=r"tasks must be of xnli, .* got 'copa'"):
        read_split(tmp_path, "copa", "en", "test")
