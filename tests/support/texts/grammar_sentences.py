"""One sentence of each pattern, as a speaker would write it, for the tests of the grammar."""

from __future__ import annotations

import itertools
from typing import Any

from crossalign.demo.grammar import sentence_templates as say
from crossalign.demo.grammar.adverbials import (
    DEEDS,
    FUTURE_TIMES,
    GOALS,
    HABITS,
    MEALS,
    PAST_TIMES,
    PLACES,
    REPORTS,
    SPOTS,
    VEHICLES,
)
from crossalign.demo.grammar.lexicon import (
    COMPARISONS,
    NUMBERS,
    PERSON_QUALITIES,
    PERSONS,
    QUALITIES_OF_KIND,
    THINGS,
)
from crossalign.demo.grammar.verbs import GIFTS, VERBS

QUALITIES: dict[str, Any] = {
    quality.en: quality
    for quality in itertools.chain(PERSON_QUALITIES, *QUALITIES_OF_KIND.values())
}


VERB: dict[str, Any] = {verb.en: verb for _, verb in VERBS}


NUMBER: dict[int, Any] = {number.value: number for number in NUMBERS}


def named(choices: Any, english: str) -> Any:
    """The choice whose English (first) word is this."""
    return next(choice for choice in choices if choice[0] == english)


def person(english: str) -> Any:
    return named(PERSONS, english)


def thing(english: str) -> Any:
    return next(thing for thing in THINGS if thing.en == english)


EXPECTED = [
    (
        lambda: say.habit(
            named(HABITS, "every Monday"),
            *(person("girl"), QUALITIES["hungry"]),
            *(VERB["eat"], thing("egg"), QUALITIES["fresh"]),
            named(PLACES, "in the kitchen"),
        ),
        "every Monday the hungry girl eats a fresh egg in the kitchen",
        "jeden Montag isst das hungrige Mädchen in der Küche ein frisches Ei",
        "cada lunes la niña hambrienta come un huevo fresco en la cocina",
        "каждый понедельник голодная девочка ест свежее яйцо на кухне",
    ),
    (
        lambda: say.habit(
            named(HABITS, "sometimes"),
            *(person("uncle"), None),
            *(VERB["buy"], thing("suitcase"), QUALITIES["expensive"]),
            named(PLACES, "at the airport"),
        ),
        "sometimes the uncle buys an expensive suitcase at the airport",
        "manchmal kauft der Onkel am Flughafen einen teuren Koffer",
        "a veces el tío compra una maleta cara en el aeropuerto",
        "иногда дядя покупает дорогой чемодан в аэропорту",
    ),
    (
        lambda: say.past_with_number(
            named(PAST_TIMES, "yesterday"),
            *(person("nurse"), QUALITIES["young"]),
            *(VERB["find"], thing("key"), QUALITIES["small"], NUMBER[2]),
            named(PLACES, "in the street"),
        ),
        "yesterday the young nurse found two small keys in the street",
        "gestern hat die junge Krankenschwester auf der Straße zwei kleine Schlüssel gefunden",
        "ayer la enfermera joven encontró dos llaves pequeñas en la calle",
        "вчера молодая медсестра нашла два маленьких ключа на улице",
    ),
    (
        lambda: say.past_with_number(
            named(PAST_TIMES, "last year"),
            *(person("farmer"), QUALITIES["brave"]),
            *(VERB["sell"], thing("lamp"), QUALITIES["blue"], NUMBER[2]),
            named(PLACES, "at the market"),
        ),
        "last year the brave farmer sold two blue lamps at the market",
        "letztes Jahr hat der mutige Bauer auf dem Markt zwei blaue Lampen verkauft",
        "el año pasado el granjero valiente vendió dos lámparas azules en el mercado",
        "в прошлом году смелый фермер продал две синие лампы на рынке",
    ),
    (
        lambda: say.past_with_time_last(
            *(person("aunt"), QUALITIES["happy"]),
            *(VERB["draw"], thing("flower"), QUALITIES["yellow"]),
            *(named(PLACES, "at home"), named(PAST_TIMES, "on Friday")),
        ),
        "the happy aunt drew a yellow flower at home on Friday",
        "die glückliche Tante hat am Freitag zu Hause eine gelbe Blume gezeichnet",
        "la tía feliz dibujó una flor amarilla en casa el viernes",
        "счастливая тётя в пятницу нарисовала жёлтый цветок дома",
    ),
    (
        lambda: say.future(
            named(FUTURE_TIMES, "in a week"),
            *(person("grandfather"), QUALITIES["tired"]),
            *(VERB["repair"], thing("chair"), QUALITIES["old"]),
        ),
        "in a week the tired grandfather will repair the old chair",
        "in einer Woche wird der müde Großvater den alten Stuhl reparieren",
        "dentro de una semana el abuelo cansado reparará la silla vieja",
        "через неделю уставший дедушка починит старый стул",
    ),
    (
        lambda: say.future(
            named(FUTURE_TIMES, "tomorrow"),
            *(person("actress"), QUALITIES["famous"]),
            *(VERB["read"], thing("newspaper"), QUALITIES["interesting"]),
        ),
        "tomorrow the famous actress will read the interesting newspaper",
        "morgen wird die berühmte Schauspielerin die interessante Zeitung lesen",
        "mañana la actriz famosa leerá el periódico interesante",
        "завтра известная актриса прочитает интересную газету",
    ),
    (
        lambda: say.question(
            person("boy"),
            *(VERB["clean"], thing("bicycle"), QUALITIES["black"]),
            named(PAST_TIMES, "last week"),
        ),
        "did the boy clean the black bicycle last week?",
        "hat der Junge letzte Woche das schwarze Fahrrad geputzt?",
        "¿limpió el niño la bicicleta negra la semana pasada?",
        "мальчик на прошлой неделе помыл чёрный велосипед?",
    ),
    (
        lambda: say.report(
            *(person("engineer"), person("princess"), named(REPORTS, "thinks")),
            *(VERB["hide"], thing("coat"), QUALITIES["big"]),
        ),
        "the engineer thinks that the princess hid the big coat",
        "der Ingenieur denkt, dass die Prinzessin den großen Mantel versteckt hat",
        "el ingeniero cree que la princesa escondió el abrigo grande",
        "инженер думает, что принцесса спрятала большое пальто",
    ),
    (
        lambda: say.never(
            *(person("saleswoman"), QUALITIES["polite"]),
            *(named(DEEDS, "laughs"), named(PLACES, "in the shop")),
        ),
        "the polite saleswoman never laughs in the shop",
        "die höfliche Verkäuferin lacht nie im Laden",
        "la vendedora educada nunca se ríe en la tienda",
        "вежливая продавщица никогда не смеётся в магазине",
    ),
    (
        lambda: say.meal(
            *(person("cook"), person("sister")),
            *next(meal for meal in MEALS if meal[1].en == "water"),
            named(PLACES, "on the beach"),
        ),
        "the cook and the sister drink water on the beach",
        "der Koch und die Schwester trinken am Strand Wasser",
        "el cocinero y la hermana beben agua en la playa",
        "повар и сестра пьют воду на пляже",
    ),
    (
        lambda: say.journey(
            named(HABITS, "every Wednesday"),
            *(person("lawyer"), QUALITIES["tall"]),
            *(named(VEHICLES, "by tram"), named(GOALS, "to school")),
        ),
        "every Wednesday the tall lawyer goes to school by tram",
        "jeden Mittwoch fährt der große Anwalt mit der Straßenbahn zur Schule",
        "cada miércoles el abogado alto va a la escuela en tranvía",
        "каждую среду высокий адвокат ездит в школу на трамвае",
    ),
    (
        lambda: say.gift(
            named(PAST_TIMES, "two days ago"),
            *(person("woman"), person("student"), named(GIFTS, "gave")),
            *(thing("book"), QUALITIES["new"]),
        ),
        "two days ago the woman gave the student a new book",
        "vor zwei Tagen hat die Frau dem Studenten ein neues Buch gegeben",
        "hace dos días la mujer le dio un libro nuevo al estudiante",
        "два дня назад женщина дала студенту новую книгу",
    ),
    (
        lambda: say.gift(
            named(PAST_TIMES, "last summer"),
            *(person("neighbour"), person("grandmother"), named(GIFTS, "brought")),
            *(thing("hat"), QUALITIES["white"]),
        ),
        "last summer the neighbour brought the grandmother a white hat",
        "letzten Sommer hat der Nachbar der Großmutter einen weißen Hut gebracht",
        "el verano pasado el vecino le trajo un sombrero blanco a la abuela",
        "прошлым летом сосед принёс бабушке белую шляпу",
    ),
    (
        lambda: say.possession(person("writer"), NUMBER[3], thing("cat"), QUALITIES["black"]),
        "the writer has three black cats",
        "der Schriftsteller hat drei schwarze Katzen",
        "el escritor tiene tres gatos negros",
        "у писателя три чёрные кошки",
    ),
    (
        lambda: say.possession(person("sister"), NUMBER[5], thing("horse"), QUALITIES["beautiful"]),
        "the sister has five beautiful horses",
        "die Schwester hat fünf schöne Pferde",
        "la hermana tiene cinco caballos bonitos",
        "у сестры пять красивых лошадей",
    ),
    (
        lambda: say.comparison(
            *(thing("shirt"), QUALITIES["green"], thing("table"), QUALITIES["white"]),
            named(COMPARISONS, "cheaper"),
        ),
        "the green shirt is cheaper than the white table",
        "das grüne Hemd ist billiger als der weiße Tisch",
        "la camisa verde es más barata que la mesa blanca",
        "зелёная рубашка дешевле, чем белый стол",
    ),
    (
        lambda: say.relative_clause(
            *(thing("ball"), QUALITIES["red"], person("tourist"), VERB["lose"]),
            named(SPOTS, "under the bed"),
        ),
        "the red ball that the tourist lost is under the bed",
        "der rote Ball, den der Tourist verloren hat, liegt unter dem Bett",
        "la pelota roja que perdió el turista está debajo de la cama",
        "красный мяч, который потерял турист, лежит под кроватью",
    ),
    (
        lambda: say.relative_clause(
            *(thing("letter"), QUALITIES["important"], person("sister"), VERB["read"]),
            named(SPOTS, "behind the door"),
        ),
        "the important letter that the sister read is behind the door",
        "der wichtige Brief, den die Schwester gelesen hat, liegt hinter der Tür",
        "la carta importante que leyó la hermana está detrás de la puerta",
        "важное письмо, которое прочитала сестра, лежит за дверью",
    ),
]
