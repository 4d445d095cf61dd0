"""Pairs and items that stay in their files: sequences for `align` whose memory does not grow.

Opened once, such a file is checked from end to end, so that no step meets a bad line.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar, overload

from crossalign.data.builders import TrainingItem
from crossalign.data.items import parse_item
from crossalign.data.pairs import (
    Pair,
    check_paths,
    check_same_length,
    parse_sentence,
    parser_of,
)
from crossalign.files.indexed_lines import IndexedLines

Record = TypeVar("Record", Pair, TrainingItem)


def open_pairs(paths: Sequence[Path], languages: Sequence[str], cache: Path) -> IndexedPairs:
    """The pairs that read_pairs would read, left where they are.

    Args:
        paths: one file, or two of equally many lines; they must not change while in use.
        languages: () or the codes of source and target, for pairs whose file names none.
        cache: directory for the index (8 bytes a line) and for the text of files in .gz. An index
            is used again while size, time and first 64 KiB of its file are the same. Processes
            may share a cache.

    Raises:
        DataError: a file or line that cannot be used, naming both and the reason.
        ValueError: a wrong number of paths or languages.
    """
    check_paths(paths, languages)
    if len(paths) == 1:
        parse = parser_of(paths[0])
        return IndexedPairs([IndexedLines(paths[0], cache, lambda: _PairCheck(parse))], languages)
    sides = [IndexedLines(path, cache, _SentenceCheck) for path in paths]
    check_same_length(paths[0], len(sides[0]), paths[1], len(sides[1]))
    return IndexedPairs(sides, languages)


def open_items(path: Path, cache: Path) -> IndexedItems:
    """The items that read_items would read, left where they are; see open_pairs."""
    return IndexedItems([IndexedLines(path, cache, _ItemCheck)])


class _Indexed(Sequence[Record], Generic[Record]):
    """Records of which line k of every file holds a part."""

    def __init__(self, files: Sequence[IndexedLines]) -> None:
        self.files = files
        digest = hashlib.sha256(" ".join(file.fingerprint for file in files).encode())
        self.fingerprint = digest.hexdigest()  # of what the files hold

    def __len__(self) -> int:
        return len(self.files[0])

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> list[Record]: ...
    def __getitem__(self, index: int | slice) -> Record | list[Record]:
        if isinstance(index, slice):
            return [self._record(number) for number in range(*index.indices(len(self)))]
        return self._record(index + len(self) if index < 0 else index)

    def __iter__(self) -> Iterator[Record]:
        return map(self._record, range(len(self)))

    def _record(self, number: int) -> Record:
        raise NotImplementedError


class IndexedPairs(_Indexed[Pair]):
    """Pairs of one file, or of two parallel ones.

    Attributes:
        num_negatives: how many pairs have a hard negative.
        named_languages: the language codes that stand in pairs or were given for all.
    """

    def __init__(self, files: Sequence[IndexedLines], languages: Sequence[str]) -> None:
        super().__init__(files)
        self.languages = tuple(languages) or ("", "")
        self.num_negatives: int = files[0].summary.get("negatives", 0)
        self.named_languages = {*files[0].summary.get("languages", ()), *languages}
        if len(files) == 1:
            self._parse = parser_of(files[0].path)

    def _record(self, number: int) -> Pair:
        texts = [(file[number], file.where(number)) for file in self.files]
        if len(texts) == 2:
            pair = Pair(*(parse_sentence(text, where) for text, where in texts))
        else:
            pair = self._parse(*texts[0])
        return pair.in_languages(*self.languages)


class IndexedItems(_Indexed[TrainingItem]):
    """Items of a JSON-lines file."""

    def _record(self, number: int) -> TrainingItem:
        return parse_item(self.files[0][number], self.files[0].where(number))


def num_negatives(pairs: Sequence[Pair]) -> int:
    """How many of the pairs have a hard negative."""
    if isinstance(pairs, IndexedPairs):
        return pairs.num_negatives
    return sum(1 for pair in pairs if pair.negative)


def data_fingerprint(records: Sequence[Any]) -> str:
    """SHA-256 of pairs or items, or of the files that hold them."""
    if isinstance(records, _Indexed):
        return records.fingerprint
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


class _SentenceCheck:
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
