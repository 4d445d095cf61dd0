"""What a stream of texts is like, in memory that does not grow with it: lengths, scripts, repeats.

All numbers are exact, but for one: texts are told apart by 64-bit hashes, so among n different
texts a false repeat has a probability of about n^2 / 2^65 (1 in 4,000 for 100 million).
"""

from __future__ import annotations

import hashlib
import math
import tempfile
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from crossalign.data.meaning_ids import normalized

QUANTILES = (0.0, 0.01, 0.25, 0.5, 0.75, 0.99, 1.0)
_SORTED_AT_ONCE = 2**22  # hashes, 8 bytes each
_FLUSHED_AT = 2**16


class Lengths:
    """Counts how often each length occurs."""

    def __init__(self) -> None:
        self.counts: Counter[int] = Counter()

    def add(self, lengths: Iterable[int]) -> None:
        self.counts.update(lengths)

    def beyond(self, limit: int) -> int:
        """How many are above the limit."""
        return sum(count for length, count in self.counts.items() if length > limit)

    def summary(self) -> dict[str, float]:
        """mean and quantiles; the q-quantile is the least length that q of all do not exceed."""
        total = self.counts.total()
        if not total:
            return {}
        result = {"mean": sum(length * n for length, n in self.counts.items()) / total}
        ordered = sorted(self.counts.items())
        for quantile in QUANTILES:
            wanted, seen = max(1, math.ceil(quantile * total)), 0
            for length, count in ordered:
                seen += count
                if seen >= wanted:
                    result[f"{quantile:.0%}"] = length
                    break
        return result


class Repeats:
    """Counts texts that stood before: 8 bytes each in a temporary file, sorted part by part."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 (closed by close)
        self._buffer = bytearray()
        self.total = 0

    def add(self, text: str) -> None:
        self._buffer += hashlib.blake2b(text.encode(), digest_size=8).digest()
        self.total += 1
        if len(self._buffer) >= 8 * _FLUSHED_AT:
            self._flush()

    def count(self) -> int:
        """Texts that repeat an earlier one."""
        import numpy as np

        self._flush()
        parts = -(-self.total // _SORTED_AT_ONCE)
        distinct = 0
        for part in range(parts):
            self._file.seek(0)
            found = []
            while block := self._file.read(8 * _SORTED_AT_ONCE):
                hashes = np.frombuffer(block, np.uint64)
                found.append(hashes[hashes % np.uint64(parts) == part])
            distinct += len(np.unique(np.concatenate(found)))
        return self.total - distinct

    def close(self) -> None:
        self._file.close()

    def _flush(self) -> None:
        self._file.seek(0, 2)
        self._file.write(self._buffer)
        self._buffer.clear()


class TextStatistics:
    """Of one side of pairs, or of the texts of items."""

    def __init__(self) -> None:
        self.characters = Lengths()
        self.tokens = Lengths()
        self._exact, self._normalized = Repeats(), Repeats()
        self._letters: Counter[str] = Counter()

    def add(self, text: str) -> None:
        self.characters.add((len(text),))
        self._exact.add(text)
        self._normalized.add(normalized(text))
        self._letters.update(text)

    def summary(self) -> dict[str, Any]:
        result = {
            "characters": self.characters.summary(),
            "repeats": self._exact.count(),
            "normalized_repeats": self._normalized.count(),
            "scripts": script_shares(self._letters),
        }
        return result | ({"tokens": self.tokens.summary()} if self.tokens.counts else {})

    def close(self) -> None:
        self._exact.close()
        self._normalized.close()


def script_shares(characters: Mapping[str, int]) -> dict[str, float]:
    """The share of each script among the letters, the largest first."""
    counts: Counter[str] = Counter()
    for character, count in characters.items():
        if unicodedata.category(character).startswith("L"):
            counts[_script(character)] += count
    total = counts.total()
    return {script: count / total for script, count in counts.most_common()}


def _script(letter: str) -> str:
    """The first word of a letter's Unicode name, which is that of its script; Han for ideographs.

    NFKC first: a full-width letter belongs to the script of the letter that it stands for.
    """
    name = unicodedata.name(unicodedata.normalize("NFKC", letter)[0], "unnamed")
    word = name.split()[0].split("-")[0].capitalize()
    return "Han" if word in ("Cjk", "Ideographic") else word
