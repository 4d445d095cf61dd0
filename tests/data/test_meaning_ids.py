"""Which pairs mean the same: shared sentences on either side, in any form and chain."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from crossalign.data.meaning_ids import meaning_ids, normalized
from crossalign.data.pairs import Pair, read_pairs


def test_pairs_that_share_a_sentence_have_one_id() -> None:
    pairs = [
        Pair("Hello.", "Hallo."),
        Pair("Goodbye.", "Tschüss."),
        Pair("  hello. ", "Guten Tag."),  # white space and case do not count
        Pair("Good day.", "GUTEN TAG."),  # joins through its target
        Pair("Tschu\u0308ss.", "Salut."),  # the other normal form, on the other side
    ]
    ids = meaning_ids(pairs).pairs
    assert ids[0] == ids[2] == ids[3]
    assert ids[1] == ids[4]
    assert ids[0] != ids[1]


def test_ids_join_chains_of_any_order() -> None:
    """A chain a-b, c-d, b-c: the last pair joins two groups that were apart before."""
    pairs = [Pair("a", "b"), Pair("c", "d"), Pair("x", "y"), Pair("b", "c")]
    ids = meaning_ids(pairs).pairs
    assert ids[0] == ids[1] == ids[3] != ids[2]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Straße", "STRASSE"),
        ("ｆｕｌｌ　ｗｉｄｔｈ", "full width"),
        ("a\u00a0b \t c", "a b c"),
        ("ﬁne", "fine"),
        ("é", "e\u0301"),
        ("ΌΣΟΣ", "όσος"),
        ("ﾃﾞｰﾀ", "データ"),
    ],
)
def test_forms_of_a_text_are_one(one: str, other: str) -> None:
    assert normalized(one) == normalized(other)
    assert normalized(normalized(one)) == normalized(one)


@pytest.mark.parametrize(
    ("one", "other"), [("Yes?", "Yes."), ("a b", "ab"), ("é", "e"), ("они", "oни")]
)
def test_other_texts_stay_apart(one: str, other: str) -> None:
    """The last two differ in a Latin letter."""
    assert normalized(one) != normalized(other)


def test_ids_are_the_components_of_the_graph_of_sentences() -> None:
    """Against a plain search, on random graphs from sparse to dense."""
    rng = random.Random(0)
    for size in 5, 12, 30, 60:
        pairs = [Pair(f"s{rng.randrange(size)}", f"s{rng.randrange(size)}") for _ in range(20)]
        ids = meaning_ids(pairs).pairs
        for start in range(20):
            reached, frontier = {start}, [start]
            while frontier:
                here = pairs[frontier.pop()][:2]
                for index, pair in enumerate(pairs):
                    if index not in reached and set(pair[:2]) & set(here):
                        reached.add(index)
                        frontier.append(index)
            assert {index for index in range(20) if ids[index] == ids[start]} == reached


def test_negatives_have_the_id_of_the_pair_that_says_the_same() -> None:
    pairs = [
        Pair("a", "b", negative="D"),  # the target of the second pair
        Pair("c", "d", negative="x"),
        Pair("e", "f", negative="X"),  # the negative before
        Pair("g", "h"),
    ]
    ids, negatives = meaning_ids(pairs)
    assert len(set(ids)) == 4  # a negative joins no pairs
    assert negatives[0] == ids[1]
    assert negatives[1] == negatives[2] not in ids
    assert negatives[3] == -1


def test_real_pairs_share_sentences(data_root: Path) -> None:
    japanese = read_pairs([data_root / "pairs" / "anki" / "jpn-eng.tsv.gz"])
    assert 0.5 < len(set(meaning_ids(japanese).pairs)) / len(japanese) < 1
