"""Pairs and items that stay in their files: sequences for `align` whose memory does not grow.

Opened once, such a file is checked from end to end, so that no step finds a bad line.
"""

from __future__ import annotations

import bisect
import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar, overload

from crossalign.data.builders import TrainingItem, TranslationItems
from crossalign.data.items import parse_item
from crossalign.data.pairs import (
    Pair,
    check_paths,
    check_same_length,
    parse_sentence,
    parser_of,
)
from crossalign.files.indexed_lines import IndexedLines
from crossalign.files.text import DataError

logger = logging.getLogger("crossalign")
Record = TypeVar("Record", Pair, TrainingItem)


def open_pairs(
    paths: Sequence[Path], languages: Sequence[str], cache: Path, *, skip_bad_lines: int = 0
) -> IndexedPairs:
    """The pairs that read_pairs would read, left where they are.

    Args:
        paths: one file, or two of equally many lines; they must not change while in use.
        languages: () or the codes of source and target, for pairs whose file names none.
        cache: directory for the index (8 bytes a line) and for the text of files in .gz. An index
            is used again while size, time and first 64 KiB of its file are the same. Processes
            may share a cache.
        skip_bad_lines: up to so many lines that cannot be used are left out, in both of two
            parallel files; a warning counts them and names the first.

    Raises:
        DataError: a file or line that cannot be used, naming both and the reason.
        ValueError: a wrong number of paths or languages.
    """
    check_paths(paths, languages)
    if len(paths) == 1:
        parse = parser_of(paths[0])
        make_check = partial(_PairCheck, parse)
        files = [IndexedLines(paths[0], cache, make_check, skip_bad_lines=skip_bad_lines)]
        pairs = IndexedPairs(files, languages)
    else:
        files = [
            IndexedLines(path, cache, SentenceCheck, skip_bad_lines=skip_bad_lines)
            for path in paths
        ]
        check_same_length(paths[0], len(files[0]), paths[1], len(files[1]))
        pairs = IndexedPairs(files, languages)
    _tell_skipped(pairs, skip_bad_lines)
    return pairs


def open_items(path: Path, cache: Path, *, skip_bad_lines: int = 0) -> IndexedItems:
    """The items that read_items would read, left where they are; see open_pairs."""
    items = IndexedItems([IndexedLines(path, cache, _ItemCheck, skip_bad_lines=skip_bad_lines)])
    _tell_skipped(items, skip_bad_lines)
    return items


def _tell_skipped(records: _Indexed[Any], most: int) -> None:
    """Counts the lines that are left out and names the first.

    Raises:
        DataError: two parallel files have too many bad lines together, or nothing else.
    """
    if not records.bad_lines:
        return
    names = " and ".join(str(file.path) for file in records.files)
    reasons = "; ".join(reason for file in records.files for reason in file.bad_reasons)
    total = len(records.files[0])
    shown = f"{len(records.bad_lines):,} of {total:,} lines of {names} cannot be used"
    if len(records.bad_lines) > most:
        raise DataError(f"{shown}, more than the {most} of --skip-bad-lines; the first: {reasons}")
    if len(records) == 0:
        raise DataError(f"{names}: every line cannot be used; the first: {reasons}")
    logger.warning("%s and are left out; the first: %s", shown, reasons)


class _Indexed(Sequence[Record], Generic[Record]):
    """Records of which line k of every file holds a part.

    bad_lines: numbers of lines that are left out, ascending.
    """

    def __init__(self, files: Sequence[IndexedLines]) -> None:
        self.files = files
        self.bad_lines = sorted(set().union(*(file.bad_lines for file in files)))
        # Good lines before each bad one; record k has as many bad lines before it as are <= k.
        self._good_before = [line - index for index, line in enumerate(self.bad_lines)]
        digest = hashlib.sha256(" ".join(file.fingerprint for file in files).encode())
        self.fingerprint = digest.hexdigest()  # of what the files hold

    def __len__(self) -> int:
        return len(self.files[0]) - len(self.bad_lines)

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> list[Record]: ...
    def __getitem__(self, index: int | slice) -> Record | list[Record]:
        if isinstance(index, slice):
            return [self._record(number) for number in range(*index.indices(len(self)))]
        index = index + len(self) if index < 0 else index
        if not 0 <= index < len(self):
            path = self.files[0].path
            raise IndexError(f"{path}: has records 0 to {len(self) - 1}, not {index}")
        return self._record(index)

    def __iter__(self) -> Iterator[Record]:
        return map(self._record, range(len(self)))

    def _record(self, number: int) -> Record:
        return self._at_line(number + bisect.bisect_right(self._good_before, number))

    def _at_line(self, line: int) -> Record:
        raise NotImplementedError


class IndexedPairs(_Indexed[Pair]):
    """Pairs of one file, or of two parallel ones.

    Attributes:
        num_negatives: how many pairs have a hard negative.
        named_languages: the language codes that pairs name or were given for all.
    """

    def __init__(self, files: Sequence[IndexedLines], languages: Sequence[str]) -> None:
        super().__init__(files)
        self.languages = tuple(languages) or ("", "")
        named = f"{self.fingerprint} {' '.join(languages)}"
        self.fingerprint = hashlib.sha256(named.encode()).hexdigest()
        self.num_negatives: int = files[0].summary.get("negatives", 0)
        self.named_languages = {*files[0].summary.get("languages", ()), *languages}
        if len(files) == 1:
            self._parse = parser_of(files[0].path)

    def _at_line(self, line: int) -> Pair:
        texts = [(file[line], file.where(line)) for file in self.files]
        if len(texts) == 2:
            pair = Pair(*(parse_sentence(text, where) for text, where in texts))
        else:
            pair = self._parse(*texts[0])
        return pair.in_languages(*self.languages)


class IndexedItems(_Indexed[TrainingItem]):
    """Items of a JSON-lines file."""

    def _at_line(self, line: int) -> TrainingItem:
        return parse_item(self.files[0][line], self.files[0].where(line))


def num_negatives(pairs: Sequence[Pair]) -> int:
    """How many of the pairs have a hard negative."""
    counted: int | None = getattr(pairs, "num_negatives", None)  # of files, when they were opened
    if counted is not None:
        return counted
    return sum(1 for pair in pairs if pair.negative)


def data_fingerprint(records: Sequence[Any]) -> str:
    """SHA-256 of pairs or items, or of the files that hold them and the languages they are in."""
    known: str | None = getattr(records, "fingerprint", None)  # of files
    if known is not None:
        return known
    if isinstance(records, TranslationItems):  # which follow from their pairs
        made_of = f"{data_fingerprint(records.pairs)} {records.repeats} {records.seed}"
        return hashlib.sha256(f"{made_of} {records.languages}".encode()).hexdigest()
    digest = hashlib.sha256()
    for record in records:
        digest.update(json.dumps(record, sort_keys=True).encode())
    return digest.hexdigest()


class _PairCheck:
    """Counts the hard negatives and notes the languages of a file of pairs."""

    def __init__(self, parse: Callable[[str, str], Pair]) -> None:
        self.kind = f"pairs {parse.__name__}"
        self._parse = parse
        self._negatives = 0
        self._languages: set[str] = set()

    def __call__(self, line: str, where: str) -> None:
        pair = self._parse(line, where)
        self._negatives += bool(pair.negative)
        self._languages.update((pair.source_language, pair.target_language))

    def summary(self) -> dict[str, Any]:
        return {"negatives": self._negatives, "languages": sorted(self._languages - {""})}


class SentenceCheck:
    """Every line of a parallel file is a sentence."""

    kind = "sentences"

    def __call__(self, line: str, where: str) -> None:
        parse_sentence(line, where)

    def summary(self) -> dict[str, Any]:
        return {}


class _ItemCheck:
    kind = "items"

    def __call__(self, line: str, where: str) -> None:
        parse_item(line, where)

    def summary(self) -> dict[str, Any]:
        return {}
