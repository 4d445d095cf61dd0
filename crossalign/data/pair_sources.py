"""Several files of pairs as one sequence, each file with its own languages.

A source is written LANG-LANG:FILE or LANG-LANG:FILE,FILE (two parallel files), such as
en-de:train.en,train.de
"""

from __future__ import annotations

import bisect
import hashlib
import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, overload

from crossalign.data.languages import check_languages
from crossalign.data.mixture import Mixing
from crossalign.data.pairs import Pair

if TYPE_CHECKING:
    from crossalign.data.indexed_data import IndexedPairs

_NAMED = re.compile(r"([a-z]{2,3})-([a-z]{2,3}):(.+)", re.DOTALL)


class PairSource(NamedTuple):
    """One file of pairs, or two parallel ones, and the languages of its two sides."""

    paths: tuple[Path, ...]
    languages: tuple[str, ...]  # () where the file may name them

    def __str__(self) -> str:
        files = ",".join(map(str, self.paths))
        return f"{'-'.join(self.languages)}:{files}" if self.languages else files

    def resolved(self) -> PairSource:
        """With absolute paths."""
        return PairSource(tuple(path.resolve() for path in self.paths), self.languages)


def parse_pair_sources(texts: Sequence[str], languages: Sequence[str] = ()) -> list[PairSource]:
    """What --pairs names: one file, two parallel ones, or sources with their languages.

    Args:
        texts: paths, or sources in the form above.
        languages: of paths that name none; () or two codes.

    Raises:
        ValueError: more than two files without languages, or a source that cannot be used.
    """
    found = [None if Path(text).exists() else _NAMED.fullmatch(text) for text in texts]
    if not any(found):
        if len(texts) > 2:
            raise ValueError(
                f"pairs must be one file or two, got {len(texts)}; several corpora need their "
                "languages, such as en-de:train.en,train.de en-zh:news.tsv"
            )
        check_languages(languages)
        return [PairSource(tuple(map(Path, texts)), tuple(languages))]
    if languages:
        raise ValueError("languages must not be given where each of pairs names its own")
    sources = []
    for text, match in zip(texts, found, strict=True):
        if match is None:
            raise ValueError(
                "pairs must all name their languages where one does, such as en-de:FILE, got "
                f"{text}"
            )
        codes, files = (match[1], match[2]), match[3]
        check_languages(codes)
        names = [files] if Path(files).exists() else files.split(",")
        if len(names) > 2 or not all(names):
            raise ValueError(f"pairs must name one file or two parallel ones, got {text}")
        sources.append(PairSource(tuple(map(Path, names)), codes))
    if len(set(sources)) < len(sources):
        raise ValueError("pairs must name each source once")
    return sources


def open_pair_sources(
    sources: Sequence[PairSource],
    cache: Path,
    *,
    mixing: Mixing | None = None,
    skip_bad_lines: int = 0,
) -> IndexedPairs | JoinedPairs:
    """The pairs of all sources; see indexed_data.open_pairs for the rest."""
    from crossalign.data.indexed_data import open_pairs

    opened = [
        open_pairs(source.paths, source.languages, cache, skip_bad_lines=skip_bad_lines)
        for source in sources
    ]
    return opened[0] if len(opened) == 1 else JoinedPairs(opened, mixing or Mixing())


class JoinedPairs(Sequence[Pair]):
    """The pairs of several sources, one source behind the other.

    Attributes:
        sizes: pairs of each source.
        mixing: how a run draws from them.
        num_negatives, named_languages, fingerprint: as of IndexedPairs.
    """

    def __init__(self, parts: Sequence[IndexedPairs], mixing: Mixing) -> None:
        self.parts, self.mixing = parts, mixing
        self.sizes = [len(part) for part in parts]
        self._ends = list(itertools.accumulate(self.sizes))
        self.num_negatives = sum(part.num_negatives for part in parts)
        self.named_languages = set[str]().union(*(part.named_languages for part in parts))
        digest = hashlib.sha256(" ".join(part.fingerprint for part in parts).encode())
        self.fingerprint = digest.hexdigest()

    def __len__(self) -> int:
        return self._ends[-1]

    @overload
    def __getitem__(self, index: int) -> Pair: ...
    @overload
    def __getitem__(self, index: slice) -> list[Pair]: ...
    def __getitem__(self, index: int | slice) -> Pair | list[Pair]:
        if isinstance(index, slice):
            return [self._pair(number) for number in range(*index.indices(len(self)))]
        return self._pair(range(len(self))[index])  # negative ones too; IndexError beyond the end

    def __iter__(self) -> Iterator[Pair]:
        return itertools.chain.from_iterable(self.parts)

    def _pair(self, number: int) -> Pair:
        part = bisect.bisect_right(self._ends, number)
        return self.parts[part][number - self._ends[part] + self.sizes[part]]
