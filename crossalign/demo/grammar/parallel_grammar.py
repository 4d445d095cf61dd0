"""A parallel corpus out of a small grammar: the same sentences in four languages, nothing to fetch.

A pattern is a function that says its choices in every language, and the list of those choices. Its
sentences are numbered, the choices being the digits of a number, so that the grammar knows how many
there are and makes any of them without making the others.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from crossalign.demo.grammar import adverbials, lexicon, sentence_templates
from crossalign.demo.grammar.adverbials import HABITS, PAST_TIMES, PLACES, Phrase
from crossalign.demo.grammar.lexicon import COLORS, NUMBERS, PERSON_QUALITIES, PERSONS
from crossalign.demo.grammar.verbs import GIFTS, VERBS

# Things that one says in Russian and German stand, not lie.
_STANDING = ("lamp", "cup", "suitcase")


@dataclass(frozen=True)
class Pattern:
    """All sentences `say(*choices)`, where each slot offers tuples of one or more choices."""

    say: Callable[..., Phrase]
    slots: tuple[Sequence[tuple[Any, ...]], ...]

    @property
    def size(self) -> int:
        return math.prod(len(slot) for slot in self.slots)

    def sentence(self, index: int) -> Phrase:
        """Number index of the `size` sentences, capitalized and with its full stop."""
        choices: list[Any] = []
        for slot in self.slots:
            index, digit = divmod(index, len(slot))
            choices += slot[digit]
        return Phrase(*(_written(sentence) for sentence in self.say(*choices)))


def _written(words: str) -> str:
    start = 1 if words.startswith("¿") else 0
    end = "" if words.endswith("?") else "."
    return words[:start] + words[start].upper() + words[start + 1 :] + end


def _one_of(choices: Sequence[Any]) -> list[tuple[Any, ...]]:
    return [(choice,) for choice in choices]


def _patterns() -> tuple[Pattern, ...]:
    say = sentence_templates
    person = _one_of(PERSONS)
    described = list(itertools.product(PERSONS, (None, *PERSON_QUALITIES)))
    two_persons = list(itertools.permutations(PERSONS, 2))
    quality = _one_of(PERSON_QUALITIES)
    place, time = _one_of(PLACES), _one_of(PAST_TIMES)
    things = [
        (thing, quality)
        for thing in lexicon.THINGS
        for quality in lexicon.QUALITIES_OF_KIND[thing.kind]
    ]
    acts = [(verb, *thing) for kinds, verb in VERBS for thing in things if thing[0].kind in kinds]
    wares = [thing for thing in things if thing[0].kind in ("text", "ware")]
    lying = [
        (*thing, person, verb)
        for kinds, verb in VERBS
        for thing in wares
        for person in PERSONS
        if thing[0].kind in kinds and thing[0].en not in _STANDING and verb.en != "draw"
    ]
    colored = [
        (thing, color)
        for thing in lexicon.THINGS
        for color in COLORS
        if thing.kind in ("large", "ware")
    ]
    compared = [
        (*one, *other) for one, other in itertools.permutations(colored, 2) if one[0] != other[0]
    ]
    number = _one_of(NUMBERS)
    return (
        Pattern(say.habit, (_one_of(HABITS), described, acts, place)),
        Pattern(say.past_with_number, (time, described, acts, number, place)),
        Pattern(say.past_with_time_last, (described, acts, place, time)),
        Pattern(say.future, (_one_of(adverbials.FUTURE_TIMES), described, acts)),
        Pattern(say.question, (person, acts, time)),
        Pattern(say.report, (two_persons, _one_of(adverbials.REPORTS), acts)),
        Pattern(say.never, (person, quality, _one_of(adverbials.DEEDS), place)),
        Pattern(say.meal, (two_persons, adverbials.MEALS, place)),
        Pattern(
            say.journey,
            (_one_of(HABITS), described, _one_of(adverbials.VEHICLES), _one_of(adverbials.GOALS)),
        ),
        Pattern(say.gift, (time, two_persons, _one_of(GIFTS), wares)),
        Pattern(say.possession, (person, number, things)),
        Pattern(say.comparison, (compared, _one_of(lexicon.COMPARISONS))),
        Pattern(say.relative_clause, (lying, _one_of(adverbials.SPOTS))),
    )


PATTERNS = _patterns()


def num_sentences() -> int:
    """How many distinct sentences the grammar has; each of them in every language."""
    return sum(pattern.size for pattern in PATTERNS)


def sample_sentences(count: int, *, seed: int = 0) -> list[Phrase]:
    """Distinct sentences, as many from each pattern, in random order.

    Raises:
        ValueError: a pattern has too few sentences for its share.
    """
    smallest = min(pattern.size for pattern in PATTERNS)
    share = -(-count // len(PATTERNS))
    if count < 0 or share > smallest:
        raise ValueError(
            f"sample_sentences: count must be from 0 to {smallest * len(PATTERNS)}, got {count}"
        )
    random_numbers = random.Random(seed)
    sentences = [
        pattern.sentence(index)
        for pattern in PATTERNS
        for index in random_numbers.sample(range(pattern.size), share)
    ]
    random_numbers.shuffle(sentences)
    return sentences[:count]
