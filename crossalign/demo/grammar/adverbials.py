"""Fixed phrases of the demo's parallel grammar: when, where, where to, how, and plain verbs.

One phrase per line; the columns are English, German, Spanish and Russian.
"""

from __future__ import annotations

from typing import NamedTuple

from crossalign.demo.grammar.lexicon import table_rows


class Phrase(NamedTuple):
    """The same words in every language; the fields are lexicon.LANGUAGES in order."""

    en: str
    de: str
    es: str
    ru: str


def _phrases(table: str) -> tuple[Phrase, ...]:
    return tuple(Phrase(*row) for row in table_rows(table))


HABITS = _phrases("""
every day | jeden Tag | cada día | каждый день
every morning | jeden Morgen | cada mañana | каждое утро
every evening | jeden Abend | cada noche | каждый вечер
every week | jede Woche | cada semana | каждую неделю
every month | jeden Monat | cada mes | каждый месяц
every summer | jeden Sommer | cada verano | каждое лето
every winter | jeden Winter | cada invierno | каждую зиму
every Monday | jeden Montag | cada lunes | каждый понедельник
every Tuesday | jeden Dienstag | cada martes | каждый вторник
every Wednesday | jeden Mittwoch | cada miércoles | каждую среду
every Thursday | jeden Donnerstag | cada jueves | каждый четверг
every Friday | jeden Freitag | cada viernes | каждую пятницу
every Saturday | jeden Samstag | cada sábado | каждую субботу
every Sunday | jeden Sonntag | cada domingo | каждое воскресенье
sometimes | manchmal | a veces | иногда
""")

PAST_TIMES = _phrases("""
yesterday | gestern | ayer | вчера
last night | gestern Abend | anoche | вчера вечером
last week | letzte Woche | la semana pasada | на прошлой неделе
last month | letzten Monat | el mes pasado | в прошлом месяце
last year | letztes Jahr | el año pasado | в прошлом году
last summer | letzten Sommer | el verano pasado | прошлым летом
last winter | letzten Winter | el invierno pasado | прошлой зимой
two days ago | vor zwei Tagen | hace dos días | два дня назад
an hour ago | vor einer Stunde | hace una hora | час назад
on Monday | am Montag | el lunes | в понедельник
on Tuesday | am Dienstag | el martes | во вторник
on Wednesday | am Mittwoch | el miércoles | в среду
on Thursday | am Donnerstag | el jueves | в четверг
on Friday | am Freitag | el viernes | в пятницу
on Saturday | am Samstag | el sábado | в субботу
on Sunday | am Sonntag | el domingo | в воскресенье
""")

FUTURE_TIMES = _phrases("""
tomorrow | morgen | mañana | завтра
the day after tomorrow | übermorgen | pasado mañana | послезавтра
tonight | heute Abend | esta noche | сегодня вечером
soon | bald | pronto | скоро
next week | nächste Woche | la próxima semana | на следующей неделе
next month | nächsten Monat | el próximo mes | в следующем месяце
next year | nächstes Jahr | el próximo año | в следующем году
next summer | nächsten Sommer | el próximo verano | следующим летом
next winter | nächsten Winter | el próximo invierno | следующей зимой
in two days | in zwei Tagen | dentro de dos días | через два дня
in an hour | in einer Stunde | dentro de una hora | через час
in a week | in einer Woche | dentro de una semana | через неделю
""")

PLACES = _phrases("""
in the garden | im Garten | en el jardín | в саду
in the kitchen | in der Küche | en la cocina | на кухне
at the market | auf dem Markt | en el mercado | на рынке
in the park | im Park | en el parque | в парке
at school | in der Schule | en la escuela | в школе
in the library | in der Bibliothek | en la biblioteca | в библиотеке
at the station | am Bahnhof | en la estación | на вокзале
in the shop | im Laden | en la tienda | в магазине
on the beach | am Strand | en la playa | на пляже
in the village | im Dorf | en el pueblo | в деревне
in the city | in der Stadt | en la ciudad | в городе
in the hotel | im Hotel | en el hotel | в гостинице
in the street | auf der Straße | en la calle | на улице
at the museum | im Museum | en el museo | в музее
in the office | im Büro | en la oficina | в офисе
in the restaurant | im Restaurant | en el restaurante | в ресторане
at the airport | am Flughafen | en el aeropuerto | в аэропорту
in the hospital | im Krankenhaus | en el hospital | в больнице
at home | zu Hause | en casa | дома
""")

GOALS = _phrases("""
to the market | zum Markt | al mercado | на рынок
to the park | in den Park | al parque | в парк
to school | zur Schule | a la escuela | в школу
to the library | zur Bibliothek | a la biblioteca | в библиотеку
to the station | zum Bahnhof | a la estación | на вокзал
to the beach | zum Strand | a la playa | на пляж
to the village | ins Dorf | al pueblo | в деревню
to the city | in die Stadt | a la ciudad | в город
to the museum | ins Museum | al museo | в музей
to the theatre | ins Theater | al teatro | в театр
to the office | ins Büro | a la oficina | в офис
to the airport | zum Flughafen | al aeropuerto | в аэропорт
to the hospital | ins Krankenhaus | al hospital | в больницу
""")

VEHICLES = _phrases("""
by bus | mit dem Bus | en autobús | на автобусе
by train | mit dem Zug | en tren | на поезде
by car | mit dem Auto | en coche | на машине
by bicycle | mit dem Fahrrad | en bicicleta | на велосипеде
by taxi | mit dem Taxi | en taxi | на такси
by tram | mit der Straßenbahn | en tranvía | на трамвае
""")

# Where a thing lies: a place for a small thing.
SPOTS = _phrases("""
on the table | auf dem Tisch | en la mesa | на столе
under the table | unter dem Tisch | debajo de la mesa | под столом
on the floor | auf dem Boden | en el suelo | на полу
under the bed | unter dem Bett | debajo de la cama | под кроватью
in the box | in der Kiste | en la caja | в коробке
on the shelf | im Regal | en el estante | на полке
behind the door | hinter der Tür | detrás de la puerta | за дверью
in the car | im Auto | en el coche | в машине
""")

# Third person singular, present.
DEEDS = _phrases("""
works | arbeitet | trabaja | работает
sleeps | schläft | duerme | спит
sings | singt | canta | поёт
dances | tanzt | baila | танцует
laughs | lacht | se ríe | смеётся
cries | weint | llora | плачет
plays | spielt | juega | играет
waits | wartet | espera | ждёт
reads | liest | lee | читает
""")

# Third person plural, present, and what goes with it.
EATING = Phrase("eat", "essen", "comen", "едят")
DRINKING = Phrase("drink", "trinken", "beben", "пьют")
MEALS = (
    *(
        (EATING, dish)
        for dish in _phrases("""
bread | Brot | pan | хлеб
soup | Suppe | sopa | суп
cheese | Käse | queso | сыр
fish | Fisch | pescado | рыбу
meat | Fleisch | carne | мясо
rice | Reis | arroz | рис
""")
    ),
    *(
        (DRINKING, drink)
        for drink in _phrases("""
tea | Tee | té | чай
coffee | Kaffee | café | кофе
milk | Milch | leche | молоко
water | Wasser | agua | воду
juice | Saft | zumo | сок
""")
    ),
)

# Third person singular, present; a clause with "that" follows.
REPORTS = _phrases("""
says | sagt | dice | говорит
knows | weiß | sabe | знает
thinks | denkt | cree | думает
sees | sieht | ve | видит
""")
