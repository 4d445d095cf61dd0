"""Articles, adjectives and nouns that agree, in four languages at once.

Every function that gives a Phrase says it in the nominative unless its name says otherwise; German
and Russian tell the accusative apart, English and Spanish do not. A quality of None is left out.
"""

from __future__ import annotations

from crossalign.demo.grammar.adverbials import Phrase
from crossalign.demo.grammar.lexicon import Number, Person, Quality, Thing

_GERMAN_THE = {"m": "der", "f": "die", "n": "das"}
_GERMAN_THE_ACCUSATIVE = {"m": "den", "f": "die", "n": "das"}
_GERMAN_A_ACCUSATIVE = {"m": "einen", "f": "eine", "n": "ein"}
_GERMAN_ENDING_AFTER_A = {"m": "en", "f": "e", "n": "es"}  # accusative
_SPANISH_THE = {"m": "el", "f": "la"}
_SPANISH_A = {"m": "un", "f": "una"}


def spanish_adjective(masculine: str, gender: str, *, plural: bool = False) -> str:
    adjective = masculine
    if adjective.endswith("o") and gender == "f":
        adjective = adjective[:-1] + "a"
    if not plural:
        return adjective
    return adjective + ("s" if adjective[-1] in "aeo" else "es")


def russian_adjective(masculine: str, form: str) -> str:
    """form: "m", "f", "n", "plural" (nominative), "f accusative" or "genitive plural"."""
    if form == "m":
        return masculine
    stem, ending = masculine[:-2], masculine[-2:]
    if stem[-1] == "н" and ending == "ий":
        endings = {"f": "яя", "n": "ее", "plural": "ие", "f accusative": "юю"}
    elif stem[-1] in "гкхшжчщ":
        neuter = "ее" if stem[-1] in "шжчщ" and ending == "ий" else "ое"
        endings = {"f": "ая", "n": neuter, "plural": "ие", "f accusative": "ую"}
    else:
        endings = {"f": "ая", "n": "ое", "plural": "ые", "f accusative": "ую"}
    endings["genitive plural"] = endings["plural"][0] + "х"
    return stem + endings[form]


def _join(*words: str) -> str:
    return " ".join(word for word in words if word)


def _english(quality: Quality | None) -> str:
    return quality.en if quality else ""


def _german(quality: Quality | None, ending: str) -> str:
    return quality.de + ending if quality else ""


def _spanish(quality: Quality | None, gender: str, *, plural: bool = False) -> str:
    return spanish_adjective(quality.es, gender, plural=plural) if quality else ""


def _russian(quality: Quality | None, form: str) -> str:
    return russian_adjective(quality.ru, form) if quality else ""


def _russian_accusative(thing: Thing, quality: Quality | None) -> str:
    if thing.ru_gender != "f":
        return _join(_russian(quality, thing.ru_gender), thing.ru)
    return _join(_russian(quality, "f accusative"), thing.ru.removesuffix("а") + "у")


def _the(noun: Person | Thing, quality: Quality | None) -> Phrase:
    return Phrase(
        _join("the", _english(quality), noun.en),
        _join(_GERMAN_THE[noun.de_gender], _german(quality, "e"), noun.de),
        _join(_SPANISH_THE[noun.es_gender], noun.es, _spanish(quality, noun.es_gender)),
        _join(_russian(quality, noun.ru_gender), noun.ru),
    )


def the_person(person: Person, quality: Quality | None = None) -> Phrase:
    """the young teacher"""
    return _the(person, quality)


def to_the_person(person: Person) -> Phrase:
    """(gives) the teacher (something): the dative."""
    return Phrase(
        f"the {person.en}",
        f"{'der' if person.de_gender == 'f' else 'dem'} {person.de_dative}",
        f"{'al' if person.es_gender == 'm' else 'a la'} {person.es}",
        person.ru_dative,
    )


def the_thing(thing: Thing, quality: Quality | None = None) -> Phrase:
    """the red lamp"""
    return _the(thing, quality)


def the_thing_accusative(thing: Thing, quality: Quality | None = None) -> Phrase:
    """(sees) the red lamp"""
    ending = "en" if thing.de_gender == "m" else "e"
    german = (_GERMAN_THE_ACCUSATIVE[thing.de_gender], _german(quality, ending), thing.de)
    return _the(thing, quality)._replace(de=_join(*german), ru=_russian_accusative(thing, quality))


def a_thing_accusative(thing: Thing, quality: Quality | None = None) -> Phrase:
    """(sees) a red lamp; Russian has no article."""
    english = _join(_english(quality), thing.en)
    german_quality = _german(quality, _GERMAN_ENDING_AFTER_A[thing.de_gender])
    return Phrase(
        _join("an" if english[0] in "aeiou" else "a", english),
        _join(_GERMAN_A_ACCUSATIVE[thing.de_gender], german_quality, thing.de),
        _join(_SPANISH_A[thing.es_gender], thing.es, _spanish(quality, thing.es_gender)),
        _russian_accusative(thing, quality),
    )


def counted(number: Number, thing: Thing, quality: Quality | None = None) -> Phrase:
    """three red lamps: nominative, and for what is not alive accusative too.

    After two, three and four a Russian noun is in the genitive singular, its adjective in the
    nominative plural if feminine and else in the genitive plural; after more, both in the latter.
    """
    is_feminine = thing.ru_gender == "f"
    if number.value >= 5:
        russian = (_russian(quality, "genitive plural"), thing.ru_genitive_plural)
    else:
        form = "plural" if is_feminine else "genitive plural"
        russian = (_russian(quality, form), thing.ru_genitive)
    return Phrase(
        _join(number.en, _english(quality), thing.en_plural),
        _join(number.de, _german(quality, "e"), thing.de_plural),
        _join(number.es, thing.es_plural, _spanish(quality, thing.es_gender, plural=True)),
        _join(number.ru_f if is_feminine else number.ru, *russian),
    )
