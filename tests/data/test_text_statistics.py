"""Lengths, repeats and scripts of a stream, against plain counts."""

from __future__ import annotations

import random
from contextlib import closing

import pytest

from crossalign.data import text_statistics
from crossalign.data.text_statistics import Lengths, Repeats, TextStatistics, script_shares


def test_lengths_have_a_mean_and_quantiles() -> None:
    lengths = Lengths()
    values = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3]
    lengths.add(values)
    summary = lengths.summary()
    assert summary["mean"] == 3.9
    ordered = sorted(values)
    expected = {"0%": 1, "1%": 1, "25%": ordered[2], "50%": ordered[4], "75%": ordered[7]}
    assert summary == {"mean": 3.9, **expected, "99%": 9, "100%": 9}
    assert lengths.beyond(5) == 2
    assert Lengths().summary() == {}


@pytest.mark.parametrize("at_once", [7, 2**22])
def test_repeats_are_counted_exactly(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    """In one part and in many, flushed many times."""
    monkeypatch.setattr(text_statistics, "_SORTED_AT_ONCE", at_once)
    monkeypatch.setattr(text_statistics, "_FLUSHED_AT", 10)
    rng = random.Random(0)
    texts = [f"text {rng.randrange(300)}" for _ in range(1000)]
    with closing(Repeats()) as repeats:
        assert repeats.count() == 0
        for text in texts:
            repeats.add(text)
        assert repeats.count() == 1000 - len(set(texts))
        repeats.add("another")  # after a count, more may come
        repeats.add("another")
        assert repeats.count() == 1001 - len(set(texts))


def test_scripts_are_shares_of_letters() -> None:
    text = "Go! 12 走吧々 Привет はいカーﾃ ไทย नमस्ते ｆｗ ªµ \ue000"
    counts: dict[str, int] = {}
    for character in text:
        counts[character] = counts.get(character, 0) + 1
    shares = script_shares(counts)
    letters = {
        "Latin": 2 + 2 + 1,  # full-width letters and the ordinal among them
        "Han": 3,
        "Cyrillic": 6,
        "Hiragana": 2,
        "Katakana": 3,
        "Thai": 3,
        "Devanagari": 4,  # without its marks
        "Greek": 1,  # the micro sign
    }
    total = sum(letters.values())
    assert shares == pytest.approx({script: count / total for script, count in letters.items()})
    assert list(shares.values()) == sorted(shares.values(), reverse=True)
    assert script_shares({"1": 3, " ": 2}) == {}


def test_a_summary_tells_forms_of_a_text_apart_and_together() -> None:
    with closing(TextStatistics()) as statistics:
        for text in "Hi.", "hi.", "Hi.", "Ho.":
            statistics.add(text)
        summary = statistics.summary()
    assert (summary["repeats"], summary["normalized_repeats"]) == (1, 2)
    assert summary["characters"]["mean"] == 3
    assert "tokens" not in summary
