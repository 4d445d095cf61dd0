"""Wilson, McNemar and Holm against other ways to compute them; averages, gaps, paired tests."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest

from crossalign.evaluation.statistics import holm, mcnemar_exact, wilson_interval
from crossalign.evaluation.summary import (
    compare,
    summarize,
    summary_table,
    table,
    translation_table,
)


@pytest.mark.parametrize(("correct", "total"), [(0, 5), (1, 5), (5, 5), (263, 500), (1, 1), (0, 1)])
def test_wilson_ends_are_where_the_score_test_turns(correct: int, total: int) -> None:
    """The ends p solve (share - p)^2 = z^2 p (1 - p) / total; z is the 97.5 % point."""
    low, high = wilson_interval(correct, total)
    share = correct / total
    for end in (low, high):
        assert (share - end) ** 2 == pytest.approx(
            1.959963984540054**2 * end * (1 - end) / total, abs=1e-12
        )
    assert 0 <= low <= share <= high <= 1 and low < high


def test_wilson_of_published_example() -> None:
    """Newcombe 1998, table I: 81 of 263 gives 0.2553 to 0.3662."""
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)


@pytest.mark.parametrize(("correct", "total"), [(0, 0), (-1, 3), (4, 3)])
def test_wilson_refuses_what_is_no_share(correct: int, total: int) -> None:
    with pytest.raises(ValueError, match=f"got {correct} of {total}"):
        wilson_interval(correct, total)


@pytest.mark.parametrize(("b", "c"), [(0, 0), (1, 0), (0, 6), (3, 3), (2, 9), (10, 4)])
def test_mcnemar_counts_every_outcome_of_fair_coins(b: Any, c: Any) -> None:
    first = [True] * b + [False] * c + [True, False] * 4
    second = [False] * b + [True] * c + [True, False] * 4
    outcomes = [sum(coins) for coins in itertools.product((0, 1), repeat=b + c)]
    uneven = abs(b - c)
    share = sum(abs(b + c - 2 * heads) >= uneven for heads in outcomes) / len(outcomes)
    assert list(mcnemar_exact(first, second)) == [b, c, pytest.approx(share)]
    assert mcnemar_exact(second, first)[2] == pytest.approx(share)


def test_mcnemar_needs_pairs() -> None:
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        mcnemar_exact([True, False], [True])


def test_holm_equals_closed_testing() -> None:
    """Reject where every group of hypotheses with this one has a Bonferroni rejection."""
    p_values = [0.01, 0.04, 0.03, 0.005, 0.6, 0.03]
    for index, found in enumerate(holm(p_values)):
        others = [k for k in range(len(p_values)) if k != index]
        groups = [
            (index, *chosen)
            for size in range(len(others) + 1)
            for chosen in itertools.combinations(others, size)
        ]
        worst = max(min(1.0, len(group) * min(p_values[k] for k in group)) for group in groups)
        assert found == pytest.approx(worst)
    assert holm([]) == []


def record(language: str, accuracy: Any, shots: int = 5, seed: Any = 0, task: str = "xcopa") -> Any:
    return {
        **{"task": task, "language": language, "shots": shots, "seed": seed, "items": 10},
        **{"accuracy": accuracy, "interval": [accuracy - 0.1, accuracy + 0.1]},
        **{"above_chance": accuracy > 0.6},
    }


def test_summary_averages_languages_then_seeds() -> None:
    records = [
        *(record("en", 0.8), record("zh", 0.6), record("sw", 0.4)),
        *(record("en", 0.9, seed=1), record("zh", 0.7, seed=1), record("sw", 0.5, seed=1)),
        record("zh", 0.5, shots=0, seed=None),
    ]
    five, zero = summarize(records)
    assert five["languages"]["zh"] == {
        "mean": pytest.approx(0.65),
        "spread": pytest.approx(math.sqrt(0.005)),
        "seeds": 2,
    }
    assert five["average"]["mean"] == pytest.approx(0.65)
    assert five["average"]["spread"] == pytest.approx(math.sqrt(0.005))
    assert five["english_minus_others"] == pytest.approx(0.85 - 0.55)
    assert zero["average"] == {"mean": 0.5, "spread": None, "seeds": 1}
    assert zero["english_minus_others"] is None
    text = summary_table([five, zero])
    assert "xcopa, 5 shots: average of 3 languages 65.00 +- 7.07 over seeds, English +30.00" in text
    assert text.endswith("xcopa, 0 shots: average of 1 languages 50.00")


def answers(language: str, correct: list[bool], task: str = "xcopa") -> Any:
    return [
        {"task": task, "language": language, "shots": 0, "seed": None, "row": k, "correct": each}
        for k, each in enumerate(correct)
    ]


def test_comparison_pairs_items_and_corrects_over_languages() -> None:
    yes, no = [True] * 8, [False] * 8
    first = answers("en", yes) + answers("zh", yes[:6]) + answers("en", no, task="xnli")
    second = answers("en", no) + answers("zh", [*no[:6], *yes]) + answers("en", yes, task="xnli")
    english, chinese, nli = compare(first, second)
    assert (english["only_model_right"], english["only_compared_right"]) == (8, 0)
    assert english["p_value"] == pytest.approx(2 / 2**8)
    assert english["p_value_holm"] == pytest.approx(2 * 2 / 2**8)
    assert english["significant"]
    assert chinese["items"] == 6  # those that both have
    assert chinese["p_value_holm"] == chinese["p_value"] == pytest.approx(2 / 2**6)
    assert (nli["accuracy"], nli["accuracy_compared"]) == (0.0, 1.0)
    assert nli["p_value_holm"] == nli["p_value"]  # its own group
    assert compare(answers("en", yes), answers("fr", yes)) == []


def test_table_marks_what_is_not_above_chance() -> None:
    tests = compare(answers("en", [True] * 8), answers("en", [False] * 8))
    for each in tests:
        each |= {"shots": 5, "seed": 0}
    lines = table([record("en", 0.8), record("zh", 0.5, shots=0, seed=None)], tests).split("\n")
    assert (
        "80.00  " in lines[1] and "p (Holm) 0.00781" in lines[1] and "compared:   0.00" in lines[1]
    )
    assert "difference +100.00, p" in lines[1]  # of the items that both models have
    assert "50.00 *" in lines[2] and " - " in lines[2]
    assert lines[3].startswith("* not above chance")
    assert "*" not in table([record("en", 0.8)])


def test_translation_table_shows_directions() -> None:
    row = {"source": "en", "target": "zh", "shots": 5, "seed": 0, "sentences": 9}
    text = translation_table([{**row, "bleu": 12.345, "chrf": 45.6}])
    assert text.split("\n")[1].split() == ["en-zh", "5", "0", "9", "12.35", "45.60"]
