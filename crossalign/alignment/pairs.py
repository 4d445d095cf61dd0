"""Translation pairs: their files, and which of them mean the same."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from crossalign.text_files import DataError, checked_text, read_json_objects, read_lines, text_field

JSON_SUFFIXES = (".jsonl", ".json")


class Pair(NamedTuple):
    """A sentence and its translation; languages are codes such as "en", or "" where unknown.

    negative: a sentence close to the target that does not mean the same (a hard negative), or "".
    """

    source: str
    target: str
    source_language: str = ""
    target_language: str = ""
    negative: str = ""

    def in_languages(self, source: str, target: str) -> Pair:
        """The pair with these languages where it names none itself."""
        return self._replace(
            source_language=self.source_language or source,
            target_language=self.target_language or target,
        )


def read_pairs(paths: Sequence[Path], languages: Sequence[str] = ()) -> list[Pair]:
    r"""The pairs of one TSV or JSON-lines file, or of two parallel text files; .gz of each.

    TSV: source TAB target; further columns are ignored, quotation marks are literal, there is no
    header. JSON lines (.jsonl, .json): the keys "source" and "target", and optionally
    "source_language", "target_language" and "negative"; the items that `crossalign data build`
    writes ("sent0", "sent1") are pairs too. Lines end at "\n", before which one "\r" is dropped.

    Args:
        paths: one file, or two of equally many lines.
        languages: () or the codes of source and target, for pairs whose file names none.

    Raises:
        DataError: a file or line that cannot be used, naming both and the reason.
        ValueError: a wrong number of paths or languages.
    """
    if len(languages) not in (0, 2):
        raise ValueError(f"read_pairs: languages must be none or two codes, got {list(languages)}")
    if len(paths) == 2:
        pairs = _read_parallel(paths[0], paths[1])
    elif len(paths) != 1:
        raise ValueError(f"read_pairs: paths must be one file or two, got {len(paths)}")
    elif Path(paths[0].name.removesuffix(".gz")).suffix in JSON_SUFFIXES:
        pairs = _read_json(paths[0])
    else:
        pairs = _read_tsv(paths[0])
    source, target = languages or ("", "")
    return [pair.in_languages(source, target) for pair in pairs]


def pair_ids(pairs: Sequence[Pair]) -> list[int]:
    """One number per pair, equal for pairs that share a sentence on either side.

    Such pairs mean the same, so they must not be each other's negatives. Sentences are compared
    after NFC, without the white space around them and without case; sharing carries over: a pair
    that shares its source with a second and its target with a third joins all three.
    """
    parent = list(range(len(pairs)))

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    first_with: dict[str, int] = {}
    for index, pair in enumerate(pairs):
        for sentence in (pair.source, pair.target):
            same = first_with.setdefault(_normalised(sentence), index)
            parent[root(index)] = root(same)
    return [root(index) for index in range(len(pairs))]


def _normalised(sentence: str) -> str:
    folded = unicodedata.normalize("NFC", sentence.strip()).casefold()
    return unicodedata.normalize("NFC", folded)


def _read_parallel(source_path: Path, target_path: Path) -> list[Pair]:
    sources, targets = read_lines(source_path), read_lines(target_path)
    if len(sources) != len(targets):
        shorter, longer = sorted(
            ((len(sources), source_path), (len(targets), target_path)), key=lambda side: side[0]
        )
        raise DataError(
            f"{shorter[1]}:{shorter[0] + 1}: no line to match {longer[1]}, which has {longer[0]} "
            f"lines; this file has {shorter[0]}"
        )
    return [
        Pair(
            checked_text(source, "the sentence", f"{source_path}:{number}"),
            checked_text(target, "the sentence", f"{target_path}:{number}"),
        )
        for number, (source, target) in enumerate(zip(sources, targets, strict=True), start=1)
    ]


def _read_tsv(path: Path) -> list[Pair]:
    pairs = []
    for number, line in enumerate(read_lines(path), start=1):
        where, columns = f"{path}:{number}", line.split("\t")
        if len(columns) < 2:
            raise DataError(f"{where}: no TAB; a line must be source TAB target")
        source = checked_text(columns[0], "the source", where)
        pairs.append(Pair(source, checked_text(columns[1], "the target", where)))
    return pairs


def _read_json(path: Path) -> list[Pair]:
    pairs = []
    for where, record in read_json_objects(path):
        is_item = "sent0" in record and "source" not in record
        optional = {
            key: checked_text(record[key], f'"{key}"', where)
            for key in ("source_language", "target_language", "negative")
            if record.get(key)
        }
        source = text_field(record, "sent0" if is_item else "source", where)
        target = text_field(record, "sent1" if is_item else "target", where)
        pairs.append(Pair(source, target, **optional))
    return pairs
