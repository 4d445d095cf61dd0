"""What `crossalign analyze` reads, and the disk space it works in."""

from __future__ import annotations

import errno
import gzip
import json
import os
import random
import tempfile
import tracemalloc
from pathlib import Path

import pytest
import torch

from crossalign.analysis.memory_mapped_vectors import memory_mapped_vectors
from crossalign.analysis.parallel_text import check_names, read_parallel_text, same_meaning_ids
from crossalign.data.pairs import read_pairs
from crossalign.files.text import DataError


def write(path: Path, *lines: str) -> Path:
    text = "".join(f"{line}\n" for line in lines).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


def test_tsv_and_two_files_need_no_names(tmp_path: Path) -> None:
    pairs = write(tmp_path / "pairs.tsv", "a\tA\tnote", "b\tB", "c\tC")
    expected = {"source": ["a", "b", "c"], "target": ["A", "B", "C"]}
    assert read_parallel_text([pairs]) == expected
    two = [write(tmp_path / "x.en.gz", "a", "b", "c"), write(tmp_path / "x.de", "A", "B", "C")]
    assert read_parallel_text(two) == expected
    assert list(read_parallel_text(two, ["en", "de"])) == ["en", "de"]


def test_a_file_for_each_language(tmp_path: Path) -> None:
    codes = ["eng_Latn", "zho-CN", "el"]
    paths = [write(tmp_path / f"f.{code}", *(f"{code} {i}" for i in range(4))) for code in codes]
    found = read_parallel_text(paths, codes)
    assert list(found) == codes
    assert found["el"] == ["el 0", "el 1", "el 2", "el 3"]


def json_pair(source: str, target: str, languages: str) -> str:
    one, other = languages.split("-")
    names = {"source_language": one, "target_language": other} if one else {}
    return json.dumps({"source": source, "target": target, **names})


def test_json_lines_name_their_languages_and_are_turned_round(tmp_path: Path) -> None:
    rows = [("a", "A", "en-de"), ("b", "B", "en-de"), ("c", "C", "en-de")]
    path = write(tmp_path / "one.jsonl", *(json_pair(*row) for row in rows))
    assert read_parallel_text([path]) == {"en": ["a", "b", "c"], "de": ["A", "B", "C"]}
    mixed = [*rows[:2], ("x", "y", "en-fr"), ("C", "c", "de-en"), ("d", "D", "-")]
    path = write(tmp_path / "mixed.jsonl", *(json_pair(*row) for row in mixed))
    with pytest.raises(DataError, match=r"several languages \(-, de-en, en-de, en-fr\); choose by"):
        read_parallel_text([path])
    expected = {"en": ["a", "b", "c", "d"], "de": ["A", "B", "C", "D"]}
    assert read_parallel_text([path], ["en", "de"]) == expected
    with pytest.raises(DataError, match="2 lines are too few"):
        read_parallel_text([path], ["en", "fr"])  # one pair, and the one that names none


def test_other_languages_than_asked_for_are_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", *(json_pair(c, c.upper(), "en-de") for c in "abc"))
    with pytest.raises(DataError, match="no pair of en and ru; it holds en-de"):
        read_parallel_text([path], ["en", "ru"])
    odd = write(tmp_path / "o.jsonl", *(json_pair(c, c.upper(), "<b>-$x$") for c in "abc"))
    with pytest.raises(DataError, match=r"'<b>' and '\$x\$' cannot name the languages"):
        read_parallel_text([odd])


def test_limit_draws_lines_that_stay_together(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"f.{c}", *(f"{c}{i}" for i in range(50))) for c in ("x", "y")]
    found = read_parallel_text(paths, limit=9, seed=3)
    numbers = [int(line[1:]) for line in found["source"]]
    assert numbers == sorted(numbers) and len(set(numbers)) == 9 and numbers != list(range(9))
    assert [int(line[1:]) for line in found["target"]] == numbers
    assert read_parallel_text(paths, limit=9, seed=3) == found
    assert read_parallel_text(paths, limit=9, seed=4) != found
    assert read_parallel_text(paths, limit=99) == read_parallel_text(paths)


def test_lines_end_where_a_line_ends(tmp_path: Path) -> None:
    """U+2028 and its kin stay inside a sentence."""
    lines = ["one\u2028two\x85three", "b", "c"]
    paths = [write(tmp_path / "f.en", *lines), write(tmp_path / "f.de", "A", "B", "C")]
    assert read_parallel_text(paths)["source"] == lines


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ({"en": "a\nb\nc\n", "de": "A\nB\n"}, r"f\.de:3: no line to match .*f\.en, which has 3 li"),
        ({"en": "a\n \nc\n", "de": "A\nB\nC\n"}, r"f\.en:2: the sentence is empty"),
        ({"en": "", "de": "A\n"}, r"f\.en: the file is empty"),
        ({"en": "a\nb\n", "de": "A\nB\n"}, "2 lines are too few; 3 are needed"),
        ({"en": "a\na\na\n", "de": "A\nB\nC\n"}, "every sentence in source is the same"),
    ],
)
def test_unusable_files_are_named(tmp_path: Path, texts: dict[str, str], message: str) -> None:
    paths = []
    for code, text in texts.items():
        paths.append(tmp_path / f"f.{code}")
        paths[-1].write_text(text)
    with pytest.raises(DataError, match=message):
        read_parallel_text(paths)


@pytest.mark.parametrize(
    ("num_files", "languages", "message"),
    [
        (3, [], "3 names for 3 files of --pairs, got 0"),
        (3, ["en", "de"], "3 names for 3 files of --pairs, got 2"),
        (1, ["en"], "2 names for 1 file of --pairs, got 1"),
        (2, ["en", "en"], "en en names a language twice"),
        (2, ["en", "<b>"], "'<b>' must be a code of ASCII letters"),
        (2, ["en", "$x$"], "must be a code"),
        (2, ["en", "中文"], "must be a code"),
        (2, ["en", ""], "must be a code"),
        (2, ["en", "x" * 33], "at most 32"),
    ],
)
def test_unusable_names_are_refused(num_files: int, languages: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_names(num_files, languages)


def test_lines_that_share_a_sentence_mean_the_same() -> None:
    sentences = {
        "en": ["Hi.", "hi.", "Bye", "No"],
        "de": ["Hallo.", "Servus.", "Tschüs", "SERVUS."],
    }
    first, second, third, fourth = same_meaning_ids(sentences, "en", "de")
    assert first == second == fourth != third


def test_vectors_are_mapped_from_a_nameless_file_that_goes_with_them(
    tmp_path: Path,
) -> None:
    def mapped() -> list[str]:
        maps = Path("/proc/self/maps")
        if not maps.is_file():
            pytest.skip("no /proc/self/maps to see what is mapped")
        return [line for line in maps.read_text().splitlines() if str(tmp_path) in line]

    tensor = memory_mapped_vectors(tmp_path, 300, 64)
    assert list(tmp_path.iterdir()) == []
    assert tensor.shape == (300, 64) and tensor.dtype == torch.float32
    assert tensor.abs().max() == 0
    tensor[[5, 7]] = torch.ones(2, 64)
    assert tensor.sum() == 128
    assert len(mapped()) == 1
    view = tensor[:10]
    del tensor
    assert view[5].sum() == 64
    del view
    assert mapped() == []


def test_a_full_disk_is_an_error_that_says_what_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    with pytest.raises(OSError, match=r"no room for 4\.0 GB of sentence vectors; name an --output"):
        memory_mapped_vectors(tmp_path, 10_000_000, 100)
    assert list(tmp_path.iterdir()) == []


def test_packed_text_is_unpacked_to_the_disk_and_lines_are_read_from_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A .gz file was unpacked whole into memory, to take 3 of its lines."""
    lines = [f"{number} " + "x" * 1000 for number in range(20_000)]
    path = write(tmp_path / "f.en.gz", *lines)
    other = write(tmp_path / "f.de.gz", *(f"{line}!" for line in lines))
    del lines
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    read_parallel_text([write(tmp_path / "a", *"abc"), write(tmp_path / "b", *"ABC")])  # imports
    tracemalloc.start()
    found = read_parallel_text([path, other], limit=3)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    drawn = sorted(random.Random(0).sample(range(20_000), 3))
    assert [line.split()[0] for line in found["source"]] == list(map(str, drawn))
    assert peak < 15e6 < 20_000 * 1000  # of the bytes that either file unpacks to
    assert not list((tmp_path / "tmp").iterdir())


def test_a_pipe_is_refused(tmp_path: Path) -> None:
    """It hung where nobody wrote to it."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="is a pipe or device, which can be read only once"):
        read_parallel_text([tmp_path / "pipe"])
    with pytest.raises(DataError, match="is a pipe or device, which can be read only once"):
        read_pairs([tmp_path / "pipe"])
