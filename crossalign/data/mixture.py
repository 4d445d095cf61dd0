"""How pairs of several sources are mixed: an endless stream of their numbers, in O(1) memory.

Source i of n_i pairs is drawn in proportion to n_i ("size"), equally often ("equal"), or to
n_i ** (1 / T) ("temperature": 1 is size, large T is equal), and each source in shuffled passes of
its own, so that none of its pairs comes twice before all have come once.

Source: Arivazhagan et al. 2019, "Massively Multilingual Neural Machine Translation in the Wild"
    (temperature-based sampling).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

from crossalign.data.permutation import Permutation, ShuffledStream

MIXINGS = ("size", "equal", "temperature")
BATCH_LANGUAGES = ("mixed", "one")
_SLOTS = 4096  # of a cycle; shares are multiples of 1 / _SLOTS


class PairStream(Protocol):
    """Numbers of pairs, in the order in which steps take them."""

    def take(self, start: int, length: int) -> list[int]: ...


class Mixing(NamedTuple):
    """How often a source is drawn, and what a batch holds."""

    by: str = "size"  # one of MIXINGS
    temperature: float = 5.0  # of by="temperature"
    batch_languages: str = "mixed"  # "mixed": any source in a batch; "one": one source a batch


def pair_stream(pairs: Any, key: str, batch_size: int) -> PairStream:
    """The stream for pairs of one source, or of several (pair_sources.JoinedPairs).

    Args:
        pairs: the sequence; several sources have `sizes` and a `mixing`.
        key: what the order depends on, the seed among it.
        batch_size: pairs taken at once, which matters where a batch holds one source only.
    """
    sizes: list[int] | None = getattr(pairs, "sizes", None)
    if sizes is None:
        return ShuffledStream(len(pairs), key)
    mixing: Mixing = pairs.mixing
    if mixing.by == "size" and mixing.batch_languages == "mixed":
        return ShuffledStream(len(pairs), key)  # every pair once in a pass over all
    exponent = {"size": 1.0, "equal": 0.0, "temperature": 1.0 / mixing.temperature}[mixing.by]
    run = batch_size if mixing.batch_languages == "one" else 1
    return MixedStream(sizes, [size**exponent for size in sizes], key, run=run)


class MixedStream:
    """Numbers of pairs, drawn from several sources by weight.

    The sources take turns in cycles of 4,096 slots that hold each in proportion to its weight, in a
    shuffled order; a source with a tiny weight has one slot. So any element costs no pass over
    those before it, and a resumed run goes on anywhere.

    Args:
        sizes: pairs of each source; their numbers follow one another.
        weights: how often each source is drawn, in any unit.
        key: what the order depends on.
        run: elements of one slot, which are all of one source.
    """

    def __init__(
        self, sizes: Sequence[int], weights: Sequence[float], key: str, *, run: int = 1
    ) -> None:
        if len(sizes) > _SLOTS:
            raise ValueError(f"MixedStream: at most {_SLOTS} sources, got {len(sizes)}")
        self._run, self._key = run, key
        self._slots = _apportioned(weights)
        self._source_of = [source for source, slots in enumerate(self._slots) for _ in range(slots)]
        self._first = [sum(sizes[:source]) for source in range(len(sizes))]
        self._streams = [
            ShuffledStream(size, f"{key} source {source}") for source, size in enumerate(sizes)
        ]
        self._cycle = lru_cache(maxsize=2)(self._cycle_of)

    def take(self, start: int, length: int) -> list[int]:
        """Elements start to start + length of the stream."""
        drawn = [self._drawn(number) for number in range(start, start + length)]
        # What a source gives to consecutive elements is consecutive in its own stream.
        counts = Counter(source for source, _ in drawn)
        firsts = dict(reversed(drawn))
        taken = {
            source: iter(self._streams[source].take(firsts[source], count))
            for source, count in counts.items()
        }
        return [self._first[source] + next(taken[source]) for source, _ in drawn]

    def _drawn(self, number: int) -> tuple[int, int]:
        """The source of an element, and its position in the stream of that source."""
        slot, within = divmod(number, self._run)
        cycle, place = divmod(slot, _SLOTS)
        source, earlier = self._cycle(cycle)[place]
        slots_before = cycle * self._slots[source] + earlier  # of the same source
        return source, slots_before * self._run + within

    def _cycle_of(self, cycle: int) -> list[tuple[int, int]]:
        """For each slot its source, and how many slots of the cycle before it have the same."""
        counts = [0] * len(self._slots)
        found = []
        for number in Permutation(_SLOTS, f"{self._key} cycle {cycle}"):
            source = self._source_of[number]
            found.append((source, counts[source]))
            counts[source] += 1
        return found


def _apportioned(weights: Sequence[float]) -> list[int]:
    """Slots of each source: at least one, else by weight, the remainders to the largest."""
    free = _SLOTS - len(weights)
    exact = [weight / sum(weights) * free for weight in weights]
    slots = [1 + int(each) for each in exact]
    by_remainder = sorted(range(len(weights)), key=lambda i: (int(exact[i]) - exact[i], i))
    for index in by_remainder[: _SLOTS - sum(slots)]:
        slots[index] += 1
    return slots
