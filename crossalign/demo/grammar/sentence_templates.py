"""The sentence patterns of the demo's parallel grammar: word order, tense and verb agreement.

German: the finite verb stands second, infinitive and participle last, all verbs last in a clause.
Spanish: "le" announces a person to whom something is given. Russian: the past agrees with the
gender of its subject, and to have is "at someone there is". Each function's first line is a
sentence of its pattern; a quality of None is left out.
"""

from __future__ import annotations

from crossalign.demo.grammar.adverbials import Phrase
from crossalign.demo.grammar.lexicon import Comparison, Number, Person, Quality, Thing
from crossalign.demo.grammar.noun_phrases import (
    a_thing_accusative,
    counted,
    spanish_adjective,
    the_person,
    the_thing,
    the_thing_accusative,
    to_the_person,
)
from crossalign.demo.grammar.verbs import Gift, Verb

_GERMAN_RELATIVE_ACCUSATIVE = {"m": "den", "f": "die", "n": "das"}
_RUSSIAN_RELATIVE_ACCUSATIVE = {"m": "который", "f": "которую", "n": "которое"}


def _russian_past(verb: Verb | Gift, person: Person) -> str:
    return verb.ru_past_m if person.ru_gender == "m" else verb.ru_past_f


def habit(
    time: Phrase,
    person: Person,
    person_quality: Quality | None,
    verb: Verb,
    thing: Thing,
    quality: Quality,
    place: Phrase,
) -> Phrase:
    """Every day the young teacher buys a red lamp at the market."""
    who = the_person(person, person_quality)
    what = a_thing_accusative(thing, quality)
    return Phrase(
        f"{time.en} {who.en} {verb.en_present} {what.en} {place.en}",
        f"{time.de} {verb.de_present} {who.de} {place.de} {what.de}",
        f"{time.es} {who.es} {verb.es_present} {what.es} {place.es}",
        f"{time.ru} {who.ru} {verb.ru_present} {what.ru} {place.ru}",
    )


def past_with_number(
    time: Phrase,
    person: Person,
    person_quality: Quality | None,
    verb: Verb,
    thing: Thing,
    quality: Quality,
    number: Number,
    place: Phrase,
) -> Phrase:
    """Yesterday the young teacher bought three red lamps at the market."""
    who = the_person(person, person_quality)
    what = counted(number, thing, quality)
    return Phrase(
        f"{time.en} {who.en} {verb.en_past} {what.en} {place.en}",
        f"{time.de} hat {who.de} {place.de} {what.de} {verb.de_participle}",
        f"{time.es} {who.es} {verb.es_past} {what.es} {place.es}",
        f"{time.ru} {who.ru} {_russian_past(verb, person)} {what.ru} {place.ru}",
    )


def past_with_time_last(
    person: Person,
    person_quality: Quality | None,
    verb: Verb,
    thing: Thing,
    quality: Quality,
    place: Phrase,
    time: Phrase,
) -> Phrase:
    """The young teacher bought a red lamp at the market yesterday."""
    who = the_person(person, person_quality)
    what = a_thing_accusative(thing, quality)
    return Phrase(
        f"{who.en} {verb.en_past} {what.en} {place.en} {time.en}",
        f"{who.de} hat {time.de} {place.de} {what.de} {verb.de_participle}",
        f"{who.es} {verb.es_past} {what.es} {place.es} {time.es}",
        f"{who.ru} {time.ru} {_russian_past(verb, person)} {what.ru} {place.ru}",
    )


def future(
    time: Phrase,
    person: Person,
    person_quality: Quality | None,
    verb: Verb,
    thing: Thing,
    quality: Quality,
) -> Phrase:
    """Tomorrow the young teacher will buy the red lamp."""
    who = the_person(person, person_quality)
    what = the_thing_accusative(thing, quality)
    return Phrase(
        f"{time.en} {who.en} will {verb.en} {what.en}",
        f"{time.de} wird {who.de} {what.de} {verb.de}",
        f"{time.es} {who.es} {verb.es_future} {what.es}",
        f"{time.ru} {who.ru} {verb.ru_future} {what.ru}",
    )


def question(person: Person, verb: Verb, thing: Thing, quality: Quality, time: Phrase) -> Phrase:
    """Did the teacher buy the red lamp yesterday?"""
    who = the_person(person)
    what = the_thing_accusative(thing, quality)
    return Phrase(
        f"did {who.en} {verb.en} {what.en} {time.en}?",
        f"hat {who.de} {time.de} {what.de} {verb.de_participle}?",
        f"¿{verb.es_past} {who.es} {what.es} {time.es}?",
        f"{who.ru} {time.ru} {_russian_past(verb, person)} {what.ru}?",
    )


def report(
    speaker: Person, other: Person, says: Phrase, verb: Verb, thing: Thing, quality: Quality
) -> Phrase:
    """The doctor says that the teacher bought the red lamp."""
    first, second = the_person(speaker), the_person(other)
    what = the_thing_accusative(thing, quality)
    return Phrase(
        f"{first.en} {says.en} that {second.en} {verb.en_past} {what.en}",
        f"{first.de} {says.de}, dass {second.de} {what.de} {verb.de_participle} hat",
        f"{first.es} {says.es} que {second.es} {verb.es_past} {what.es}",
        f"{first.ru} {says.ru}, что {second.ru} {_russian_past(verb, other)} {what.ru}",
    )


def never(person: Person, person_quality: Quality, deed: Phrase, place: Phrase) -> Phrase:
    """The young teacher never works in the library."""
    who = the_person(person, person_quality)
    return Phrase(
        f"{who.en} never {deed.en} {place.en}",
        f"{who.de} {deed.de} nie {place.de}",
        f"{who.es} nunca {deed.es} {place.es}",
        f"{who.ru} никогда не {deed.ru} {place.ru}",
    )


def meal(one: Person, other: Person, verb: Phrase, item: Phrase, place: Phrase) -> Phrase:
    """The teacher and the nurse drink tea in the kitchen."""
    first, second = the_person(one), the_person(other)
    return Phrase(
        f"{first.en} and {second.en} {verb.en} {item.en} {place.en}",
        f"{first.de} und {second.de} {verb.de} {place.de} {item.de}",
        f"{first.es} y {second.es} {verb.es} {item.es} {place.es}",
        f"{first.ru} и {second.ru} {verb.ru} {item.ru} {place.ru}",
    )


def journey(
    time: Phrase, person: Person, person_quality: Quality | None, vehicle: Phrase, goal: Phrase
) -> Phrase:
    """Every Monday the young teacher goes to the market by bus."""
    who = the_person(person, person_quality)
    return Phrase(
        f"{time.en} {who.en} goes {goal.en} {vehicle.en}",
        f"{time.de} fährt {who.de} {vehicle.de} {goal.de}",
        f"{time.es} {who.es} va {goal.es} {vehicle.es}",
        f"{time.ru} {who.ru} ездит {goal.ru} {vehicle.ru}",
    )


def gift(
    time: Phrase, giver: Person, taker: Person, verb: Gift, thing: Thing, quality: Quality
) -> Phrase:
    """Yesterday the teacher gave the nurse a red lamp."""
    who, whom = the_person(giver), to_the_person(taker)
    what = a_thing_accusative(thing, quality)
    return Phrase(
        f"{time.en} {who.en} {verb.en_past} {whom.en} {what.en}",
        f"{time.de} hat {who.de} {whom.de} {what.de} {verb.de_participle}",
        f"{time.es} {who.es} le {verb.es_past} {what.es} {whom.es}",
        f"{time.ru} {who.ru} {_russian_past(verb, giver)} {whom.ru} {what.ru}",
    )


def possession(person: Person, number: Number, thing: Thing, quality: Quality) -> Phrase:
    """The neighbour has three black cats."""
    who = the_person(person)
    what = counted(number, thing, quality)
    return Phrase(
        f"{who.en} has {what.en}",
        f"{who.de} hat {what.de}",
        f"{who.es} tiene {what.es}",
        f"у {person.ru_genitive} {what.ru}",
    )


def comparison(
    one: Thing, one_color: Quality, other: Thing, other_color: Quality, than: Comparison
) -> Phrase:
    """The red lamp is more expensive than the blue table."""
    first, second = the_thing(one, one_color), the_thing(other, other_color)
    spanish = spanish_adjective(than.es, one.es_gender)
    return Phrase(
        f"{first.en} is {than.en} than {second.en}",
        f"{first.de} ist {than.de} als {second.de}",
        f"{first.es} es más {spanish} que {second.es}",
        f"{first.ru} {than.ru}, чем {second.ru}",
    )


def relative_clause(
    thing: Thing, quality: Quality, person: Person, verb: Verb, spot: Phrase
) -> Phrase:
    """The red lamp that the teacher bought is on the table."""
    what, who = the_thing(thing, quality), the_person(person)
    german = f"{_GERMAN_RELATIVE_ACCUSATIVE[thing.de_gender]} {who.de} {verb.de_participle} hat"
    russian_verb = f"{_russian_past(verb, person)} {who.ru}"
    return Phrase(
        f"{what.en} that {who.en} {verb.en_past} is {spot.en}",
        f"{what.de}, {german}, liegt {spot.de}",
        f"{what.es} que {verb.es_past} {who.es} está {spot.es}",
        f"{what.ru}, {_RUSSIAN_RELATIVE_ACCUSATIVE[thing.ru_gender]} {russian_verb}, "
        f"лежит {spot.ru}",
    )
