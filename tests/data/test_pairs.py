"""Reading translation pairs: every format, every fault; and which pairs mean the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from crossalign.data.pairs import Pair, read_pairs
from crossalign.files.output import write_whole
from crossalign.files.text import DataError
from tests.support.pair_files import DAMAGES, FAULTS, damaged_gzip, write


@pytest.mark.parametrize("name", ["pairs.tsv", "pairs.tsv.gz", "pairs.txt"])
def test_tsv_is_read(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, 'Go.\tLos.\tCC-BY\r\n"Hi"\t„Hallo"')
    assert read_pairs([path]) == [Pair("Go.", "Los."), Pair('"Hi"', '„Hallo"')]


@pytest.mark.parametrize("name", ["pairs.jsonl", "pairs.jsonl.gz", "pairs.json"])
def test_json_lines_are_read(tmp_path: Path, name: str) -> None:
    rows = [
        {"source": "Go.", "target": "Los.", "source_language": "en", "target_language": "de"},
        {"source": "Hi.", "target": "嗨。", "target_language": "zh", "negative": "走。"},
        {"sent0": "Run!", "sent1": "Lauf!", "clm_text": "Run! = Lauf!", "clm_prompt_len": 7},
    ]
    path = write(tmp_path / name, "".join(json.dumps(row) + "\n" for row in rows))
    assert read_pairs([path]) == [
        Pair("Go.", "Los.", "en", "de"),
        Pair("Hi.", "嗨。", "", "zh", "走。"),
        Pair("Run!", "Lauf!"),
    ]


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_parallel_files_are_read(tmp_path: Path, ending: str) -> None:
    english = write(tmp_path / f"a.en{ending}", "One\r\nTwo\r\n")
    german = write(tmp_path / f"a.de{ending}", "Eins\nZwei")
    assert read_pairs([english, german]) == [Pair("One", "Eins"), Pair("Two", "Zwei")]


def test_lines_end_at_newline_alone(tmp_path: Path) -> None:
    """str.splitlines would cut these sentences in two and shift every later pair."""
    odd = "a\u2028b\x0bc\x85d\re"
    english = write(tmp_path / "en", f"{odd}\nlast\n")
    german = write(tmp_path / "de", "eins\nzwei\n")
    assert read_pairs([english, german]) == [Pair(odd, "eins"), Pair("last", "zwei")]


def test_byte_order_mark_is_dropped(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", b'\xef\xbb\xbf{"source": "a", "target": "b"}\n')
    assert read_pairs([path]) == [Pair("a", "b")]


def test_languages_fill_what_the_file_leaves_open(tmp_path: Path) -> None:
    rows = '{"source": "a", "target": "b", "source_language": "fr"}\n{"source": "c", "target": "d"}'
    path = write(tmp_path / "p.jsonl", rows)
    assert read_pairs([path], ["en", "de"]) == [
        Pair("a", "b", "fr", "de"),
        Pair("c", "d", "en", "de"),
    ]


@pytest.mark.parametrize("case", FAULTS)
def test_fault_names_file_line_and_reason(tmp_path: Path, case: str) -> None:
    name, content, message = FAULTS[case]
    with pytest.raises(DataError, match=message):
        read_pairs([write(tmp_path / name, content)])


def test_missing_file_and_directory_are_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.tsv: cannot be read: No such file"):
        read_pairs([tmp_path / "none.tsv"])
    with pytest.raises(DataError, match="cannot be read: Is a directory"):
        read_pairs([tmp_path])


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_gzip_is_an_error(tmp_path: Path, damage: str) -> None:
    path = damaged_gzip(tmp_path / "p.tsv.gz", damage)
    with pytest.raises(DataError, match=r"p\.tsv\.gz: not a whole gzip file"):
        read_pairs([path])


@pytest.mark.parametrize("order", [1, -1])
def test_unequal_sides_are_an_error(tmp_path: Path, order: int) -> None:
    paths = [write(tmp_path / "long", "1\n2\n3\n"), write(tmp_path / "short", "1\n2\n")]
    with pytest.raises(DataError, match=r"short:3: no line to match .*long, which has 3 lines"):
        read_pairs(paths[::order])


def test_empty_line_of_a_parallel_file_is_an_error(tmp_path: Path) -> None:
    paths = [write(tmp_path / "a", "1\n2\n"), write(tmp_path / "b", "1\n\t\n")]
    with pytest.raises(DataError, match=r"b:2: the sentence is empty"):
        read_pairs(paths)


def test_wrong_number_of_paths_or_languages_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="paths must be one file or two, got 3"):
        read_pairs([tmp_path] * 3)
    with pytest.raises(ValueError, match=r"languages must be none or two codes, got \['en'\]"):
        read_pairs([tmp_path], ["en"])


def test_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = write(tmp_path / "kept", "before")
    with pytest.raises(UnicodeEncodeError):
        write_whole(path, "after \ud800")
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]
    write_whole(path, "after\n")
    assert path.read_bytes() == b"after\n"
    (tmp_path / "usual").touch()
    assert path.stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_real_pairs_are_read(data_root: Path) -> None:
    multi30k = data_root / "pairs" / "multi30k"
    pairs = read_pairs([multi30k / "val.en.gz", multi30k / "val.de.gz"], ["en", "de"])
    assert len(pairs) == 1014


def test_real_retrieval_pairs_have_as_many_lines_as_they_should(data_root: Path) -> None:
    folder = data_root / "eval" / "tatoeba"
    shorter = {"swh": 390, "tam": 307, "tel": 234, "tha": 548}  # of 1,000
    sizes = {}
    for english in sorted(folder.glob("*.eng.gz")):
        code = english.name.split(".")[1].removesuffix("-eng")
        sizes[code] = len(read_pairs([folder / f"tatoeba.{code}-eng.{code}.gz", english]))
    assert len(sizes) == 32
    assert {code: size for code, size in sizes.items() if size != 1000} == shorter
