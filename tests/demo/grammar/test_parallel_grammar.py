"""The demo's corpus: grammatical in four languages, distinct, repeatable, of known size.

The expected sentences were written by hand from the grammar of each language, so that every
gender, case and number of every pattern stands here at least once.
"""

from __future__ import annotations

import re
from typing import Any

import pytest

from crossalign.demo.grammar.adverbials import (
    DEEDS,
    FUTURE_TIMES,
    GOALS,
    HABITS,
    PAST_TIMES,
    PLACES,
    REPORTS,
    SPOTS,
    VEHICLES,
    Phrase,
)
from crossalign.demo.grammar.lexicon import (
    COMPARISONS,
    LANGUAGES,
    NUMBERS,
    PERSON_QUALITIES,
    PERSONS,
    QUALITIES_OF_KIND,
    THINGS,
)
from crossalign.demo.grammar.noun_phrases import counted, russian_adjective, spanish_adjective
from crossalign.demo.grammar.parallel_grammar import PATTERNS, num_sentences, sample_sentences
from crossalign.demo.grammar.verbs import GIFTS
from tests.support.texts.grammar_sentences import EXPECTED, NUMBER, QUALITIES, VERB, thing


@pytest.mark.parametrize("case", EXPECTED, ids=lambda case: case[1])
def test_sentence_is_as_written_by_hand(case: Any) -> None:
    make, *expected = case
    assert make() == Phrase(*expected)


def test_every_pattern_has_an_expected_sentence() -> None:
    tested = {name for make, *_ in EXPECTED for name in make.__code__.co_names}
    assert {pattern.say.__name__ for pattern in PATTERNS} <= tested


@pytest.mark.parametrize(
    ("masculine", "forms"),
    [
        ("красный", "красная красное красные красную красных"),
        ("молодой", "молодая молодое молодые молодую молодых"),
        ("синий", "синяя синее синие синюю синих"),
        ("большой", "большая большое большие большую больших"),
        ("маленький", "маленькая маленькое маленькие маленькую маленьких"),
        ("дорогой", "дорогая дорогое дорогие дорогую дорогих"),
        ("свежий", "свежая свежее свежие свежую свежих"),
    ],
)
def test_russian_adjective_is_declined(masculine: Any, forms: Any) -> None:
    names = ("f", "n", "plural", "f accusative", "genitive plural")
    assert [russian_adjective(masculine, name) for name in names] == forms.split()


def test_spanish_adjective_agrees() -> None:
    forms = [("m", False), ("f", False), ("m", True), ("f", True)]
    for masculine, expected in {
        "rojo": "rojo roja rojos rojas",
        "grande": "grande grande grandes grandes",
        "azul": "azul azul azules azules",
    }.items():
        found = [spanish_adjective(masculine, gender, plural=plural) for gender, plural in forms]
        assert found == expected.split()


@pytest.mark.parametrize(
    ("value", "english", "russian"),
    [
        (2, "apple", "два больших яблока"),
        (4, "table", "четыре больших стола"),
        (2, "cup", "две большие чашки"),
        (3, "egg", "три больших яйца"),
        (5, "chair", "пять больших стульев"),
        (10, "bag", "десять больших сумок"),
        (2, "coat", "два больших пальто"),
    ],
)
def test_russian_numbers_govern_case(value: Any, english: str, russian: Any) -> None:
    assert counted(NUMBER[value], thing(english), QUALITIES["big"]).ru == russian


def test_sentences_are_distinct_in_every_language() -> None:
    sentences = sample_sentences(26_000, seed=3)
    for language in range(len(LANGUAGES)):
        assert len({sentence[language] for sentence in sentences}) == 26_000


def test_number_of_sentences_counts_distinct_ones() -> None:
    smallest = min(PATTERNS, key=lambda pattern: pattern.size)
    made = {smallest.sentence(index) for index in range(smallest.size)}
    assert len(made) == smallest.size > 20_000
    assert num_sentences() == sum(pattern.size for pattern in PATTERNS)


def test_options_of_a_slot_differ_in_every_language() -> None:
    """Two options that read alike in one language would give it the same sentence twice."""
    phrases = (HABITS, PAST_TIMES, FUTURE_TIMES, PLACES, GOALS, VEHICLES, SPOTS, DEEDS, REPORTS)
    nouns = (PERSONS, THINGS, PERSON_QUALITIES, *QUALITIES_OF_KIND.values(), COMPARISONS, NUMBERS)
    for options in (*phrases, *nouns):
        for language in LANGUAGES:
            words = [getattr(option, language) for option in options]
            assert len(set(words)) == len(words), language
    for fields in ("en_past", "de_participle", "es_past", "ru_past_m", "ru_past_f"):
        for verbs in (VERB.values(), GIFTS):
            assert len({getattr(verb, fields) for verb in verbs}) == len(verbs)


def test_sample_depends_on_seed_alone() -> None:
    assert sample_sentences(500, seed=1) == sample_sentences(500, seed=1)
    assert sample_sentences(500, seed=1) != sample_sentences(500, seed=2)


def test_sample_shares_itself_out_among_patterns() -> None:
    sentences = sample_sentences(len(PATTERNS) * 20)
    questions = [sentence for sentence in sentences if sentence.en.endswith("?")]
    assert len(questions) == 20


@pytest.mark.parametrize("count", [-1, 10**6])
def test_sample_of_impossible_size_is_refused(count: int) -> None:
    with pytest.raises(ValueError, match=r"count must be from 0 to \d+, got"):
        sample_sentences(count)


def test_sentences_are_written_like_sentences() -> None:
    for sentence in sample_sentences(1300, seed=5):
        for text in sentence[:3]:
            assert re.fullmatch(r"¿?[A-ZÜÖÄÁ][a-zA-ZäöüÄÖÜßáéíóúñ ,]+[.?]", text), text
        assert sentence.es.startswith("¿") == sentence.es.endswith("?")
        assert re.fullmatch(r"[А-Я][а-яё ,]+[.?]", sentence.ru), sentence.ru
        for text in sentence:
            assert "  " not in text and " ," not in text
