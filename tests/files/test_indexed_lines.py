"""Lines by number from disk: the same as read whole, checked once, in constant memory."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from crossalign.data.builders import build_items
from crossalign.data.indexed_data import (
    IndexedPairs,
    data_fingerprint,
    num_negatives,
    open_items,
    open_pairs,
)
from crossalign.data.items import read_items
from crossalign.data.pairs import Pair, read_pairs
from crossalign.files import indexed_lines, streamed_lines
from crossalign.files.indexed_lines import IndexedLines
from crossalign.files.output import write_json_lines
from crossalign.files.streamed_lines import stream_lines
from crossalign.files.text import DataError, read_lines
from tests.support.pair_files import DAMAGES, FAULTS, damaged_gzip, write


class Seen:
    """A check that notes what it saw."""

    kind = "seen"

    def __init__(self) -> None:
        self.lines: list[str] = []

    def __call__(self, line: str, where: str) -> None:
        self.lines.append(line)

    def summary(self) -> dict[str, Any]:
        return {"count": len(self.lines)}


CONTENTS = {
    "plain": "one\ntwo\nthree\n",
    "no end": "one\ntwo",
    "one": "only",
    "crlf": "one\r\ntwo\r\n\r\nfour\r",
    "blank lines": "\n\na\n\n",
    "mark": "\ufeffone\ntwo\ufeff\n",
    "other ends": "a\u2028b\x0bc\x85d\re\nlast\x00\n",
    "wide": "ü😀語\n" * 50 + "é",
    "long line": "x" * 5000 + "\n" + "y" * 3000 + "\nz\n",
}


@pytest.mark.parametrize("chunk", [1, 7, 2**20])
@pytest.mark.parametrize("ending", ["", ".gz"])
@pytest.mark.parametrize("case", CONTENTS)
def test_lines_are_those_of_the_file_read_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str, ending: str, chunk: int
) -> None:
    """However the blocks fall that are read at a time."""
    monkeypatch.setattr(streamed_lines, "CHUNK", chunk)
    path = write(tmp_path / f"text{ending}", CONTENTS[case])
    check = Seen()
    lines = IndexedLines(path, tmp_path / "cache", lambda: check)
    expected = read_lines(path)
    assert check.lines == expected
    assert [lines[number] for number in range(len(lines))] == expected
    assert [line.decode() for line in stream_lines(path)] == expected
    assert lines.summary == {"count": len(expected)}
    assert lines.where(0) == f"{path}:1"
    for number in -1, len(lines):
        with pytest.raises(IndexError, match=f"has lines 0 to {len(lines) - 1}, not {number}"):
            lines[number]


def count_builds(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    built: list[Path] = []
    build = indexed_lines._build

    def counted(path: Path, *rest: Any) -> Any:
        built.append(path)
        return build(path, *rest)

    monkeypatch.setattr(indexed_lines, "_build", counted)
    return built


def test_index_is_used_again_while_the_file_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = count_builds(monkeypatch)
    path, cache = write(tmp_path / "text", "one\ntwo\n"), tmp_path / "deep" / "cache"

    def third_line() -> str:
        lines = IndexedLines(path, cache, Seen)
        return lines[len(lines) - 1]

    assert third_line() == third_line() == "two"
    assert len(built) == 1
    status = path.stat()
    path.write_text("one\nTWO\n")  # of equal size and, below, time: its head tells
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert third_line() == "TWO" and len(built) == 2
    path.write_text("one\ntwo\nthree\n")
    assert third_line() == "three" and len(built) == 3
    (entry,) = cache.iterdir()
    (entry / "index.json").write_text("{")
    assert third_line() == "three" and len(built) == 4

    class Other(Seen):
        kind = "other"

    IndexedLines(path, cache, Other)
    assert len(built) == 5
    assert len(list(cache.iterdir())) == 2  # nothing but the two indices


def test_an_index_in_use_survives_its_replacement(tmp_path: Path) -> None:
    path, cache = write(tmp_path / "text.gz", "old one\nold two\n"), tmp_path / "cache"
    old = IndexedLines(path, cache, Seen)
    write(path, "new\n")
    assert IndexedLines(path, cache, Seen)[0] == "new"
    assert old[1] == "old two"


def test_processes_may_build_at_the_same_time(tmp_path: Path) -> None:
    """The second one comes while the first one builds, and is ready before it."""
    path, cache = write(tmp_path / "text", "one\ntwo\n"), tmp_path / "cache"
    quicker: list[IndexedLines] = []

    class Slow(Seen):
        def __call__(self, line: str, where: str) -> None:
            if not quicker:
                quicker.append(IndexedLines(path, cache, Seen))

    slow = IndexedLines(path, cache, Slow)
    assert slow[1] == quicker[0][1] == "two"
    assert len(list(cache.iterdir())) == 1


def test_a_file_that_changes_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "text", "one\ntwo\n")

    class Meddling(Seen):
        def __call__(self, line: str, where: str) -> None:
            path.write_text("one\ntwo\nthree\n")

    with pytest.raises(DataError, match="text: changed while it was read"):
        IndexedLines(path, tmp_path / "cache", Meddling)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_line_without_end_is_no_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streamed_lines, "CHUNK", 10)
    monkeypatch.setattr(streamed_lines, "LONGEST_LINE", 100)
    with pytest.raises(DataError, match="text: a line of more than 100 bytes"):
        IndexedLines(write(tmp_path / "text", "x" * 200), tmp_path / "cache", Seen)


@pytest.mark.parametrize("case", FAULTS)
def test_faults_are_those_of_pairs_read_whole(tmp_path: Path, case: str) -> None:
    name, content, message = FAULTS[case]
    with pytest.raises(DataError, match=message):
        open_pairs([write(tmp_path / name, content)], (), tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []  # nothing is left


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_gzip_is_an_error(tmp_path: Path, damage: str) -> None:
    path = damaged_gzip(tmp_path / "p.tsv.gz", damage)
    with pytest.raises(DataError, match=r"p\.tsv\.gz: not a whole gzip file"):
        open_pairs([path], (), tmp_path / "cache")


def test_missing_file_and_directory_are_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.tsv: cannot be read: No such file"):
        open_pairs([tmp_path / "none.tsv"], (), tmp_path)
    with pytest.raises(DataError, match="cannot be read: Is a directory"):
        open_pairs([tmp_path], (), tmp_path)
    with pytest.raises(ValueError, match="paths must be one file or two, got 3"):
        open_pairs([tmp_path] * 3, (), tmp_path)


FILES: dict[str, Callable[[Path], list[Path]]] = {
    "tsv": lambda folder: [write(folder / "p.tsv", 'Go.\tLos.\tCC-BY\r\n"Hi"\t„Hallo"')],
    "tsv.gz": lambda folder: [write(folder / "p.tsv.gz", "Go.\tLos.\nHi\tHallo\n")],
    "jsonl": lambda folder: [
        write(
            folder / "p.jsonl",
            '{"source": "Go.", "target": "Los.", "source_language": "fr", "negative": "Rot."}\n'
            '{"sent0": "Run!", "sent1": "Lauf!", "negative": "Blau."}\n',
        )
    ],
    "parallel": lambda folder: [
        write(folder / "a.en", "One\r\nTwo\u2028\n"),
        write(folder / "a.de.gz", "Eins\nZwei"),
    ],
}


@pytest.mark.parametrize("languages", [(), ("en", "de")])
@pytest.mark.parametrize("case", FILES)
def test_pairs_are_those_read_whole(tmp_path: Path, case: str, languages: tuple[str, ...]) -> None:
    paths = FILES[case](tmp_path)
    expected = read_pairs(paths, languages)
    for _ in range(2):  # built, and used again
        pairs = open_pairs(paths, languages, tmp_path / "cache")
        assert list(pairs) == expected
        assert (len(pairs), pairs[0], pairs[-1], pairs[:1]) == (2, *expected, expected[:1])
        assert num_negatives(pairs) == num_negatives(expected) == (2 if case == "jsonl" else 0)
        named = {*languages} | ({"fr"} if case == "jsonl" else set())
        assert pairs.named_languages == named
    with pytest.raises(IndexError):
        pairs[2]


@pytest.mark.parametrize("order", [1, -1])
def test_unequal_sides_are_an_error(tmp_path: Path, order: int) -> None:
    paths = [write(tmp_path / "long", "1\n2\n3\n"), write(tmp_path / "short", "1\n2\n")]
    with pytest.raises(DataError, match=r"short:3: no line to match .*long, which has 3 lines"):
        open_pairs(paths[::order], (), tmp_path / "cache")


def test_items_are_those_read_whole(tmp_path: Path) -> None:
    items = build_items("translation", [("ein\u2028s 😀", 'o"ne\t'), ("zwei", "two")], repeats=2)
    write_json_lines(tmp_path / "items.jsonl", items)
    opened = open_items(tmp_path / "items.jsonl", tmp_path / "cache")
    assert list(opened) == read_items(tmp_path / "items.jsonl") == items
    write(tmp_path / "items.jsonl", '{"clm_text": "a = b", "clm_prompt_len": 9}')
    with pytest.raises(DataError, match=r'items\.jsonl:1: "clm_prompt_len" must be a number of'):
        open_items(tmp_path / "items.jsonl", tmp_path / "cache")


def test_fingerprint_tells_data_apart(tmp_path: Path) -> None:
    cache, prints = tmp_path / "cache", []
    for name, content in (("a", "x\ty\nz\tw\n"), ("b", "x\ty\nz\tw\n"), ("c", "x\ty\nz\tv\n")):
        pairs = open_pairs([write(tmp_path / name, content)], (), cache)
        prints.append((data_fingerprint(pairs), data_fingerprint(list(pairs))))
    assert prints[0] == prints[1]
    assert prints[0][0] != prints[2][0] and prints[0][1] != prints[2][1]
    assert data_fingerprint([Pair("a", "b")]) != data_fingerprint([Pair("a", "", "b")])


def test_descriptors_are_closed(tmp_path: Path) -> None:
    path = write(tmp_path / "p.tsv", "a\tb\n")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        assert isinstance(open_pairs([path], (), tmp_path / "cache"), IndexedPairs)
    assert len(os.listdir("/proc/self/fd")) == before


MEASURE = """
import json, resource, sys, time
from pathlib import Path
import numpy
from crossalign.data.indexed_data import open_pairs
from crossalign.data.permutation import ShuffledStream

def resident_kib():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

before = resident_kib()
pairs = open_pairs([Path(sys.argv[1])], (), Path(sys.argv[2]))
stream = ShuffledStream(len(pairs), "pairs 0")
texts = {pairs[index].source for step in range(20) for index in stream.take(step * 64, 64)}
print(json.dumps([len(pairs), len(texts), resident_kib() - before]))
"""


def test_two_million_lines_take_constant_memory(tmp_path: Path) -> None:
    """As objects they take some 600 MiB, their text alone 36 MiB, their index 15 MiB."""
    path = tmp_path / "pairs.tsv.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        for start in range(0, 2_000_000, 100_000):
            lines = (f"s {number}\tt {number}" for number in range(start, start + 100_000))
            file.write(("\n".join(lines) + "\n").encode())
    command = [sys.executable, "-c", MEASURE, path, tmp_path / "cache"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True)
    count, different, grown_kib = json.loads(done.stdout)
    assert (count, different) == (2_000_000, 1280)
    assert grown_kib < 30 * 1024
