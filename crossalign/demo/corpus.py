"""Three corpora of different sentences: to learn the languages, to align them, and to measure."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple

from crossalign.data.pairs import Pair
from crossalign.demo.grammar.adverbials import Phrase
from crossalign.demo.grammar.lexicon import LANGUAGES
from crossalign.demo.grammar.parallel_grammar import sample_sentences


class Corpus(NamedTuple):
    """No sentence of the grammar is in two of the three, in whatever language.

    texts: each sentence in one language only. pairs: each sentence in two languages.
    held_out: language -> the same sentences, in the same order.
    """

    texts: list[str]
    pairs: list[Pair]
    held_out: dict[str, list[str]]


def make_corpus(*, num_texts: int, num_pairs: int, num_held_out: int, seed: int) -> Corpus:
    """num_texts: of all languages together, as many in each."""
    sentences = iter(sample_sentences(num_texts + num_pairs + num_held_out, seed=seed))
    held_out = [next(sentences) for _ in range(num_held_out)]
    rng = random.Random(seed)
    pairs = []
    for _ in range(num_pairs):
        source, target = rng.sample(LANGUAGES, 2)
        pairs.append(_pair(next(sentences), source, target))
    texts = [sentence[index % len(LANGUAGES)] for index, sentence in enumerate(sentences)]
    return Corpus(texts, pairs, _by_language(held_out))


def _pair(sentence: Phrase, source: str, target: str) -> Pair:
    return Pair(getattr(sentence, source), getattr(sentence, target), source, target)


def _by_language(sentences: Sequence[Phrase]) -> dict[str, list[str]]:
    return {
        language: [getattr(sentence, language) for sentence in sentences] for language in LANGUAGES
    }
