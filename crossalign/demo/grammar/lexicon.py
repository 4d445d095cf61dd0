"""Nouns and adjectives of the demo's parallel grammar: English, German, Spanish, Russian.

One line per word, one column per language, in the order of LANGUAGES; a gender stands before the
forms it governs. Only forms that some template needs are listed.
"""

from __future__ import annotations

from typing import NamedTuple

LANGUAGES = ("en", "de", "es", "ru")


class Person(NamedTuple):
    """Masculine or feminine in Spanish and Russian; the German girl is neuter."""

    en: str
    de_gender: str
    de: str
    de_dative: str
    es_gender: str
    es: str
    ru_gender: str
    ru: str
    ru_genitive: str
    ru_dative: str


class Thing(NamedTuple):
    """A thing or an animal; its kind says which qualities and verbs suit it."""

    kind: str
    en: str
    en_plural: str
    de_gender: str
    de: str
    de_plural: str
    es_gender: str
    es: str
    es_plural: str
    ru_gender: str
    ru: str
    ru_genitive: str
    ru_genitive_plural: str


class Quality(NamedTuple):
    """An adjective: the German stem, the Spanish masculine, the Russian masculine."""

    en: str
    de: str
    es: str
    ru: str


class Number(NamedTuple):
    """Above one; Russian tells two from two by gender."""

    value: int
    en: str
    de: str
    es: str
    ru: str
    ru_f: str


class Comparison(NamedTuple):
    """An adjective's comparative; Spanish says "más" and the adjective, as its masculine."""

    en: str
    de: str
    es: str
    ru: str


def table_rows(table: str) -> list[list[str]]:
    """The cells, parted by "|", of each line."""
    return [[cell.strip() for cell in line.split("|")] for line in table.strip().splitlines()]


def table_words(table: str) -> list[list[str]]:
    """The words of each line, whatever cell they are in."""
    return [" ".join(row).split() for row in table_rows(table)]


PERSONS = tuple(
    Person(*words)
    for words in table_words("""
teacher | m Lehrer Lehrer | m profesor | m учитель учителя учителю
doctor | m Arzt Arzt | m médico | m врач врача врачу
farmer | m Bauer Bauern | m granjero | m фермер фермера фермеру
student | m Student Studenten | m estudiante | m студент студента студенту
neighbour | m Nachbar Nachbarn | m vecino | m сосед соседа соседу
boy | m Junge Jungen | m niño | m мальчик мальчика мальчику
grandfather | m Großvater Großvater | m abuelo | m дедушка дедушки дедушке
uncle | m Onkel Onkel | m tío | m дядя дяди дяде
brother | m Bruder Bruder | m hermano | m брат брата брату
cook | m Koch Koch | m cocinero | m повар повара повару
writer | m Schriftsteller Schriftsteller | m escritor | m писатель писателя писателю
engineer | m Ingenieur Ingenieur | m ingeniero | m инженер инженера инженеру
sailor | m Matrose Matrosen | m marinero | m моряк моряка моряку
lawyer | m Anwalt Anwalt | m abogado | m адвокат адвоката адвокату
tourist | m Tourist Touristen | m turista | m турист туриста туристу
girl | n Mädchen Mädchen | f niña | f девочка девочки девочке
grandmother | f Großmutter Großmutter | f abuela | f бабушка бабушки бабушке
nurse | f Krankenschwester Krankenschwester | f enfermera | f медсестра медсестры медсестре
woman | f Frau Frau | f mujer | f женщина женщины женщине
aunt | f Tante Tante | f tía | f тётя тёти тёте
sister | f Schwester Schwester | f hermana | f сестра сестры сестре
actress | f Schauspielerin Schauspielerin | f actriz | f актриса актрисы актрисе
princess | f Prinzessin Prinzessin | f princesa | f принцесса принцессы принцессе
saleswoman | f Verkäuferin Verkäuferin | f vendedora | f продавщица продавщицы продавщице
""")
)

# Russian: nominative, genitive, genitive plural.
THINGS = tuple(
    Thing(*words)
    for words in table_words("""
text book books | n Buch Bücher | m libro libros | f книга книги книг
text newspaper newspapers | f Zeitung Zeitungen | m periódico periódicos | f газета газеты газет
text letter letters | m Brief Briefe | f carta cartas | n письмо письма писем
food apple apples | m Apfel Äpfel | f manzana manzanas | n яблоко яблока яблок
food orange oranges | f Orange Orangen | f naranja naranjas | m апельсин апельсина апельсинов
food tomato tomatoes | f Tomate Tomaten | m tomate tomates | m помидор помидора помидоров
food egg eggs | n Ei Eier | m huevo huevos | n яйцо яйца яиц
food cake cakes | m Kuchen Kuchen | m pastel pasteles | m пирог пирога пирогов
large car cars | n Auto Autos | m coche coches | f машина машины машин
large bicycle bicycles | n Fahrrad Fahrräder | f bicicleta bicicletas | \
    m велосипед велосипеда велосипедов
large table tables | m Tisch Tische | f mesa mesas | m стол стола столов
large chair chairs | m Stuhl Stühle | f silla sillas | m стул стула стульев
ware suitcase suitcases | m Koffer Koffer | f maleta maletas | m чемодан чемодана чемоданов
ware lamp lamps | f Lampe Lampen | f lámpara lámparas | f лампа лампы ламп
ware cup cups | f Tasse Tassen | f taza tazas | f чашка чашки чашек
ware coat coats | m Mantel Mäntel | m abrigo abrigos | n пальто пальто пальто
ware shirt shirts | n Hemd Hemden | f camisa camisas | f рубашка рубашки рубашек
ware dress dresses | n Kleid Kleider | m vestido vestidos | n платье платья платьев
ware hat hats | m Hut Hüte | m sombrero sombreros | f шляпа шляпы шляп
ware ball balls | m Ball Bälle | f pelota pelotas | m мяч мяча мячей
ware bag bags | f Tasche Taschen | m bolso bolsos | f сумка сумки сумок
ware key keys | m Schlüssel Schlüssel | f llave llaves | m ключ ключа ключей
ware knife knives | n Messer Messer | m cuchillo cuchillos | m нож ножа ножей
ware flower flowers | f Blume Blumen | f flor flores | m цветок цветка цветов
animal cat cats | f Katze Katzen | m gato gatos | f кошка кошки кошек
animal dog dogs | m Hund Hunde | m perro perros | f собака собаки собак
animal horse horses | n Pferd Pferde | m caballo caballos | f лошадь лошади лошадей
animal bird birds | m Vogel Vögel | m pájaro pájaros | f птица птицы птиц
animal cow cows | f Kuh Kühe | f vaca vacas | f корова коровы коров
""")
)


def _qualities(table: str) -> dict[str, Quality]:
    return {row[0]: Quality(*row) for row in table_rows(table)}


PERSON_QUALITIES = tuple(
    _qualities("""
young | jung | joven | молодой
tall | groß | alto | высокий
friendly | freundlich | amable | приветливый
tired | müd | cansado | уставший
clever | klug | inteligente | умный
rich | reich | rico | богатый
cheerful | fröhlich | alegre | весёлый
polite | höflich | educado | вежливый
hungry | hungrig | hambriento | голодный
famous | berühmt | famoso | известный
happy | glücklich | feliz | счастливый
brave | mutig | valiente | смелый
""").values()
)

_THING_QUALITIES = _qualities("""
red | rot | rojo | красный
blue | blau | azul | синий
green | grün | verde | зелёный
black | schwarz | negro | чёрный
white | weiß | blanco | белый
yellow | gelb | amarillo | жёлтый
big | groß | grande | большой
small | klein | pequeño | маленький
new | neu | nuevo | новый
old | alt | viejo | старый
expensive | teur | caro | дорогой
beautiful | schön | bonito | красивый
interesting | interessant | interesante | интересный
important | wichtig | importante | важный
long | lang | largo | длинный
short | kurz | corto | короткий
fresh | frisch | fresco | свежий
delicious | lecker | delicioso | вкусный
""")


def _suiting(qualities: str) -> tuple[Quality, ...]:
    return tuple(_THING_QUALITIES[en] for en in qualities.split())


COLORS = _suiting("red blue green black white yellow")
_OF_WARES = _suiting("red blue green black white yellow big small new old expensive beautiful")
QUALITIES_OF_KIND = {
    "text": _suiting("new old interesting important long short"),
    "food": _suiting("fresh delicious big small expensive"),
    "large": _OF_WARES,
    "ware": _OF_WARES,
    "animal": _suiting("black white big small old beautiful"),
}

NUMBERS = tuple(
    Number(int(value), *words)
    for value, *words in table_words("""
2 | two | zwei | dos | два две
3 | three | drei | tres | три три
4 | four | vier | cuatro | четыре четыре
5 | five | fünf | cinco | пять пять
6 | six | sechs | seis | шесть шесть
7 | seven | sieben | siete | семь семь
8 | eight | acht | ocho | восемь восемь
10 | ten | zehn | diez | десять десять
""")
)

COMPARISONS = tuple(
    Comparison(*row)
    for row in table_rows("""
more expensive | teurer | caro | дороже
cheaper | billiger | barato | дешевле
bigger | größer | grande | больше
smaller | kleiner | pequeño | меньше
newer | neuer | nuevo | новее
heavier | schwerer | pesado | тяжелее
more beautiful | schöner | bonito | красивее
""")
)
