"""The user's pairs, parted: some to align with, some sentences in every language to measure on."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence

from crossalign.data.pair_sources import PairSource, open_pair_sources, parse_pair_sources
from crossalign.data.pairs import Pair
from crossalign.demo.corpus import Corpus
from crossalign.files.temporary import temporary_folder

MOST_READ = 50_000  # pairs of each file: more than minutes of training see
MOST_HELD_OUT = 200
FEWEST = 20


def own_text(texts: Sequence[str], seed: int) -> Corpus:
    """The first MOST_READ pairs of each source, parted at random.

    Args:
        texts: sources with their languages, such as en-de:FILE or en-de:FILE,FILE; several have a
            language in common, and sentences in it.

    Raises:
        DataError: a file or line that cannot be used.
        ValueError: sources without languages, or too few sentences that are in all of them.
    """
    sources = parse_pair_sources(texts)
    if not all(source.languages for source in sources):
        raise ValueError(
            f"pairs must name their languages, such as en-de:{','.join(texts)}, got {texts[0]}"
        )
    shared = set.intersection(*(set(source.languages) for source in sources))
    if not shared:
        raise ValueError("pairs must have one language in common, such as en-de:FILE en-zh:FILE")
    pivot = next(code for code in sources[0].languages if code in shared)
    read = [_read(source) for source in sources]
    translations = [_translations(pairs, pivot) for pairs in read]
    common = [text for text in translations[0] if all(text in each for each in translations)]
    if len(common) < 2 * FEWEST:
        raise ValueError(
            f"pairs must have at least {2 * FEWEST} sentences of {pivot!r} that are in all files, "
            f"with other translations for each, got {len(common)}; give one file, or larger ones"
        )
    random.Random(seed).shuffle(common)
    chosen = common[: min(MOST_HELD_OUT, len(common) // 2)]
    held_out = {pivot: chosen}
    for source, each in zip(sources, translations, strict=True):
        other = next(code for code in source.languages if code != pivot)
        held_out[other] = [each[text] for text in chosen]
    known = {(code, text) for code, lines in held_out.items() for text in lines}
    pairs = [pair for pair in itertools.chain(*read) if not known & _sides(pair)]
    if len(pairs) < FEWEST:
        raise ValueError(f"pairs must leave at least {FEWEST} to align with, got {len(pairs)}")
    return Corpus([], pairs, held_out)


def _read(source: PairSource) -> list[Pair]:
    with temporary_folder() as cache:
        pairs = open_pair_sources([source], cache)
        return [
            pair._replace(source_language=source.languages[0], target_language=source.languages[1])
            for pair in itertools.islice(pairs, MOST_READ)
        ]


def _translations(pairs: Sequence[Pair], pivot: str) -> dict[str, str]:
    """Sentence of the pivot -> its translation; each of both once, so that a hit is a hit."""
    found: dict[str, str] = {}
    seen = set()
    for pair in pairs:
        first = pair.source_language == pivot
        text, other = (pair.source, pair.target) if first else (pair.target, pair.source)
        if text not in found and other not in seen:
            found[text] = other
            seen.add(other)
    return found


def _sides(pair: Pair) -> set[tuple[str | None, str]]:
    return {(pair.source_language, pair.source), (pair.target_language, pair.target)}
