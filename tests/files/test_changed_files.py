"""A file of lines that changes while it is in use is noticed, whatever its length and time."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from crossalign.files.indexed_lines import IndexedLines
from crossalign.files.text import DataError


class AnyLine:
    kind = "any"

    def __call__(self, line: str, where: str) -> None:
        pass

    def summary(self) -> dict[str, Any]:
        return {}


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def rewritten(path: Path, content: bytes) -> None:
    """In place: whoever has the file open sees it."""
    with open(path, "r+b") as file:
        file.truncate(len(content))
        file.write(content)
    later = path.stat().st_mtime_ns + 10**9  # whatever the clock of the file system counts in
    os.utime(path, ns=(later, later))


@pytest.mark.parametrize("content", [b"one\nTWO\n", b"one\n", b"one\ntwo\nthree\n", b"onetwo\n\n"])
def test_a_file_that_changes_while_it_is_in_use_is_an_error(tmp_path: Path, content: bytes) -> None:
    """Of equal length the other text was trained on, else "no TAB" was said of a good file."""
    path = written(tmp_path / "text", "one\ntwo\n")
    lines = IndexedLines(path, tmp_path / "cache", AnyLine)
    rewritten(path, b"one\ntwo\n")  # the same again is no change
    assert lines[1] == "two"
    rewritten(path, content)
    for number in (1, 0):
        with pytest.raises(DataError, match=f"{path}: changed while it was in use"):
            lines[number]
    rewritten(path, b"one\ntwo\n")
    assert lines[1] == "two"


def test_a_file_that_is_replaced_while_it_is_in_use_stays_what_it_was(tmp_path: Path) -> None:
    path = written(tmp_path / "text", "one\ntwo\n")
    lines = IndexedLines(path, tmp_path / "cache", AnyLine)
    os.replace(written(tmp_path / "other", "ONE\nTWO\n"), path)
    assert [lines[0], lines[1]] == ["one", "two"]
