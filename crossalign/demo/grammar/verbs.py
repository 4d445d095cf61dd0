"""Verbs with an object of the demo's parallel grammar, inflected by hand.

One verb per line, one column per language: English, German, Spanish, Russian.
"""

from __future__ import annotations

from typing import NamedTuple

from crossalign.demo.grammar.lexicon import table_rows, table_words


class Verb(NamedTuple):
    """Third person forms; the Russian present is imperfective, past and future are perfective."""

    en: str
    en_present: str
    en_past: str
    de_present: str
    de: str
    de_participle: str
    es_present: str
    es_past: str
    es_future: str
    ru_present: str
    ru_past_m: str
    ru_past_f: str
    ru_future: str


class Gift(NamedTuple):
    """A verb of giving, in the past."""

    en_past: str
    de_participle: str
    es_past: str
    ru_past_m: str
    ru_past_f: str


# First the kinds of thing that the verb takes.
VERBS = tuple(
    (tuple(kinds.split()), Verb(*" ".join(forms).split()))
    for kinds, *forms in table_rows("""
text food large ware | buy buys bought | kauft kaufen gekauft | \
    compra compró comprará | покупает купил купила купит
text food large ware | sell sells sold | verkauft verkaufen verkauft | \
    vende vendió venderá | продаёт продал продала продаст
text food ware | find finds found | findet finden gefunden | \
    encuentra encontró encontrará | находит нашёл нашла найдёт
text food ware | hide hides hid | versteckt verstecken versteckt | \
    esconde escondió esconderá | прячет спрятал спрятала спрячет
text ware | lose loses lost | verliert verlieren verloren | \
    pierde perdió perderá | теряет потерял потеряла потеряет
text ware | forget forgets forgot | vergisst vergessen vergessen | \
    olvida olvidó olvidará | забывает забыл забыла забудет
text | read reads read | liest lesen gelesen | \
    lee leyó leerá | читает прочитал прочитала прочитает
food | eat eats ate | isst essen gegessen | \
    come comió comerá | ест съел съела съест
large ware | draw draws drew | zeichnet zeichnen gezeichnet | \
    dibuja dibujó dibujará | рисует нарисовал нарисовала нарисует
large | repair repairs repaired | repariert reparieren repariert | \
    repara reparó reparará | чинит починил починила починит
large | clean cleans cleaned | putzt putzen geputzt | \
    limpia limpió limpiará | моет помыл помыла помоет
""")
)

GIFTS = tuple(
    Gift(*words)
    for words in table_words("""
gave | gegeben | dio | дал дала
showed | gezeigt | mostró | показал показала
sent | geschickt | envió | отправил отправила
brought | gebracht | trajo | принёс принесла
sold | verkauft | vendió | продал продала
lent | geliehen | prestó | одолжил одолжила
""")
)
