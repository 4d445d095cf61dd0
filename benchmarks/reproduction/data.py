"""The text of reproduce_afp, split so that pre-training sees no sentence in two languages.

Multi30k: each language is pre-trained on lines of its own; further lines, of all its languages,
are translation pairs with English. Tatoeba: the English sentence of a line decides by its hash
whether the line gives English text, text in the other language, or a pair. Tests come from files of
their own.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from crossalign.data.pairs import Pair
from crossalign.files.text import read_lines

PIVOT = "en"
CAPTION_LANGUAGES = ("en", "de", "fr", "cs")  # four-way parallel: Multi30k
# Tatoeba pairs with English: code -> (in pairs/anki, in eval/tatoeba)
TATOEBA_LANGUAGES = {
    "ja": ("jpn", "jpn"),
    "zh": ("cmn", "cmn"),
    "ar": ("ara", "ara"),
    "hi": ("hin", "hin"),
    "id": ("ind", "ind"),
    "ko": ("kor", "kor"),
    "th": ("tha", "tha"),
    "vi": ("vie", "vie"),
}


class Corpus(NamedTuple):
    """texts: language -> sentences for pre-training. held_out: likewise, never seen.

    tests: language -> (English sentences, their translations), for every language but English.
    """

    texts: dict[str, list[str]]
    pairs: list[Pair]
    held_out: dict[str, list[str]]
    tests: dict[str, tuple[list[str], list[str]]]


def load_corpus(
    data: Path,
    tatoeba: Sequence[str],
    *,
    captions_per_language: int,
    texts_per_language: int,
    held_out: int,
    tests: int,
) -> Corpus:
    """captions_per_language of Multi30k and at most texts_per_language of Tatoeba (per language)
    for pre-training; the rest is pairs. held_out, tests: sentences of each language."""
    corpus = Corpus({}, [], {}, {})
    _add_captions(corpus, data, captions_per_language, held_out, tests)
    for language in tatoeba:
        _add_tatoeba(corpus, data, language, texts_per_language, held_out, tests)
    random.Random("pairs").shuffle(corpus.pairs)
    return corpus


def _add_captions(corpus: Corpus, data: Path, per_language: int, held_out: int, tests: int) -> None:
    def lines(part: str, language: str) -> list[str]:
        return read_lines(data / "pairs" / "multi30k" / f"{part}.{language}.gz")

    first_pair = len(CAPTION_LANGUAGES) * per_language
    test = {language: lines("test_2016_flickr", language) for language in CAPTION_LANGUAGES}
    train = {language: lines("train", language) for language in CAPTION_LANGUAGES}
    for index, language in enumerate(CAPTION_LANGUAGES):
        own = slice(index * per_language, (index + 1) * per_language)
        corpus.texts[language] = train[language][own]
        corpus.held_out[language] = lines("val", language)[:held_out]
        if language == PIVOT:
            continue
        both = zip(train[PIVOT][first_pair:], train[language][first_pair:], strict=True)
        corpus.pairs.extend(Pair(*texts, PIVOT, language) for texts in both)
        corpus.tests[language] = (test[PIVOT][:tests], test[language][:tests])


def _add_tatoeba(
    corpus: Corpus, data: Path, language: str, per_language: int, held_out: int, tests: int
) -> None:
    train_code, test_code = TATOEBA_LANGUAGES[language]
    rows = [
        line.split("\t")[:2]
        for line in read_lines(data / "pairs" / "anki" / f"{train_code}-eng.tsv.gz")
    ]
    random.Random(language).shuffle(rows)
    parts: list[list[list[str]]] = [[], [], []]
    for row in rows:
        parts[_third(row[0])].append(row)
    english = list(dict.fromkeys(row[0] for row in parts[0]))
    corpus.texts[PIVOT] += english[: per_language // 2]
    corpus.texts[language] = [row[1] for row in parts[1]][:per_language]
    corpus.pairs.extend(Pair(row[0], row[1], PIVOT, language) for row in parts[2])
    folder = data / "eval" / "tatoeba"
    sides = [
        read_lines(folder / f"tatoeba.{test_code}-eng.{side}.gz") for side in ("eng", test_code)
    ]
    corpus.tests[language] = (sides[0][:tests], sides[1][:tests])
    # Behind the test sentences, of which no one is read twice where there are enough.
    corpus.held_out[language] = sides[1][-held_out:]


def _third(text: str) -> int:
    """0, 1 or 2, the same for the same text in every file."""
    return int(hashlib.sha256(text.encode()).hexdigest(), 16) % 3
