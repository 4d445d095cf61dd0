"""What the records of an evaluation say together: averages, gaps to English, paired tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import Any

from crossalign.evaluation.statistics import holm, mcnemar_exact

Records = Sequence[Mapping[str, Any]]
LEVEL = 0.05


def summarize(records: Records) -> list[dict[str, Any]]:
    """For each task and number of shots: each language and their average over the seeds.

    The spread is the standard deviation over seeds, None for a single one; the average counts
    every language alike; the gap is English minus the average of the other languages.
    """
    summary = []
    for task, shots in _distinct(records, "task", "shots"):
        group = [each for each in records if (each["task"], each["shots"]) == (task, shots)]
        languages = {
            language: _over_seeds(
                [each["accuracy"] for each in group if each["language"] == language]
            )
            for (language,) in _distinct(group, "language")
        }
        averages = [
            mean(each["accuracy"] for each in group if each["seed"] == seed)
            for (seed,) in _distinct(group, "seed")
        ]
        others = [each["mean"] for name, each in languages.items() if name != "en"]
        gap = languages["en"]["mean"] - mean(others) if "en" in languages and others else None
        summary.append(
            {
                "task": task,
                "shots": shots,
                "languages": languages,
                "average": _over_seeds(averages),
                "english_minus_others": gap,
            }
        )
    return summary


def compare(first: Records, second: Records) -> list[dict[str, Any]]:
    """Paired tests of the items of two models, corrected over the languages of each group.

    A group is one task, number of shots and seed. Items that one model could not take are left
    out of the test.
    """
    tests = []
    keys = ("task", "language", "shots", "seed")
    theirs = _by(second, *keys)
    for key, items in _by(first, *keys).items():
        ours = {each["row"]: each["correct"] for each in items}
        others = {each["row"]: each["correct"] for each in theirs.get(key, ())}
        both = [row for row in ours if row in others]
        if not both:
            continue
        only_first, only_second, p = mcnemar_exact(
            [ours[row] for row in both], [others[row] for row in both]
        )
        tests.append(
            {
                **dict(zip(keys, key, strict=True)),
                "items": len(both),
                "accuracy": mean(ours[row] for row in both),
                "accuracy_compared": mean(others[row] for row in both),
                "only_model_right": only_first,
                "only_compared_right": only_second,
                "p_value": p,
            }
        )
    for group in _by(tests, "task", "shots", "seed").values():
        for test, corrected in zip(group, holm([each["p_value"] for each in group]), strict=True):
            test |= {"p_value_holm": corrected, "significant": corrected < LEVEL}
    return tests


def table(records: Records, comparison: Records = ()) -> str:
    """The records as text, one line each; a star marks a score that is not above chance."""
    lines = [f"{'task':12} {'lang':5}{'shots':>6}{'seed':>6}{'items':>7}  accuracy   95 % interval"]
    tests = {_key(each): each for each in comparison}
    for each in records:
        low, high = each["interval"]
        seed = "-" if each["seed"] is None else each["seed"]
        line = (
            f"{each['task']:12} {each['language']:5}{each['shots']:>6}{seed:>6}{each['items']:>7}"
            f"  {100 * each['accuracy']:6.2f} {' ' if each['above_chance'] else '*'}"
            f"   {100 * low:5.1f} - {100 * high:5.1f}"
        )
        test = tests.get(_key(each))
        if test:
            difference = test["accuracy"] - test["accuracy_compared"]
            line += (
                f"   compared: {100 * test['accuracy_compared']:6.2f}, "
                f"difference {100 * difference:+.2f}, p (Holm) {test['p_value_holm']:.3g}"
            )
        lines.append(line)
    if not all(each["above_chance"] for each in records):
        lines.append("* not above chance: its interval reaches down to chance")
    return "\n".join(lines)


def summary_table(summary: Records) -> str:
    """Averages as text, one line for each task and number of shots."""
    lines = []
    for each in summary:
        average, gap = each["average"], each["english_minus_others"]
        spread = (
            "" if average["spread"] is None else f" +- {100 * average['spread']:.2f} over seeds"
        )
        against = "" if gap is None else f", English {100 * gap:+.2f} against the others"
        lines.append(
            f"{each['task']}, {each['shots']} shots: average of {len(each['languages'])} languages "
            f"{100 * average['mean']:.2f}{spread}{against}"
        )
    return "\n".join(lines)


def _over_seeds(values: Sequence[float]) -> dict[str, Any]:
    return {
        "mean": mean(values),
        "spread": stdev(values) if len(values) > 1 else None,
        "seeds": len(values),
    }


def _key(record: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(record[name] for name in ("task", "language", "shots", "seed"))


def _distinct(records: Records, *names: str) -> list[tuple[Any, ...]]:
    """The values of these keys, each once, in the order of the records."""
    return list(dict.fromkeys(tuple(each[name] for name in names) for each in records))


def _by(records: Sequence[Any], *names: str) -> dict[tuple[Any, ...], list[Any]]:
    groups: dict[tuple[Any, ...], list[Any]] = {}
    for each in records:
        groups.setdefault(tuple(each[name] for name in names), []).append(each)
    return groups


def translation_table(records: Records) -> str:
    """The translation records as text, one line each."""
    lines = [f"{'direction':12}{'shots':>6}{'seed':>6}{'sentences':>11}{'BLEU':>8}{'chrF':>8}"]
    for each in records:
        seed = "-" if each["seed"] is None else each["seed"]
        lines.append(
            f"{each['source'] + '-' + each['target']:12}{each['shots']:>6}{seed:>6}"
            f"{each['sentences']:>11}{each['bleu']:8.2f}{each['chrf']:8.2f}"
        )
    return "\n".join(lines)
