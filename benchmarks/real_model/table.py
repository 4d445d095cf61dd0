"""Writes the tables of docs/real-model.md from result files of align_real_model.

python -m benchmarks.real_model.table RESULT.jsonl [RESULT.jsonl ...]

Several files are of one experiment: what was measured later, of the weights that the first trained.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.provenance import ROOT
from benchmarks.real_model.plot import accuracies
from benchmarks.report import with_tables
from crossalign.evaluation.statistics import holm, mcnemar_exact
from crossalign.files.text import read_lines

PAGE = ROOT / "docs" / "real-model.md"
BEGIN, END = "<!-- real model: begin -->", "<!-- real model: end -->"
TASKS_BEGIN, TASKS_END = "<!-- tasks: begin -->", "<!-- tasks: end -->"
ARMS = {"nothing": "before", "paper": "the paper's setting", "best": "best setting found"}
ARMS |= {"joint": "the same with the paper's next-token loss"}
ARMS |= {"instructions": "the paper's, instructions only (CIF)"}
ARMS |= {"contrast": "the paper's, contrastive loss only (MCL)"}
# layer, tokens, mean that is taken out before the comparison
COLUMNS = {
    "layer 4, all tokens": (4, "all", "none"),
    "layer 4, content tokens": (4, "content", "none"),
    "the same, centered": (4, "content", "batch"),
    "layer 4, content tokens, each language centered": (4, "content", "side"),
    "layer 13, content tokens, each language centered": (13, "content", "side"),
}


def table(rows: list[dict[str, Any]]) -> str:
    """Of every arm: accuracies in percent and bits per byte, smallest and largest of its seeds."""
    head = ["", *COLUMNS, "worst bits per byte"]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    before = bits(rows, "nothing")[0]
    for arm, label in ARMS.items():
        seeds = bits(rows, arm)
        if not seeds:  # not measured
            continue
        cells = []
        for layer, tokens, center in COLUMNS.values():
            found = accuracies(rows, arm, tokens, center)
            cells.append(span([f"{value:.1f}" for value in sorted(found[layer])]))
        worst = sorted(max(seed[code] / before[code] - 1 for code in before) for seed in seeds)
        cells.append("" if arm == "nothing" else span([f"{100 * each:+.1f} %" for each in worst]))
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def bits(rows: list[dict[str, Any]], arm: str) -> list[dict[str, float]]:
    """Language -> bits per byte, seed by seed."""
    found: dict[str, dict[str, float]] = {}
    for row in rows:
        if row["part"].startswith(f"test {arm} ") and "bits_per_byte" in row:
            found.setdefault(row["part"], {})[row["language"]] = row["bits_per_byte"]
    return list(found.values())


def tasks_table(rows: list[dict[str, Any]]) -> str:
    """Of every task and language: right answers before and after, and p of the paired test, exact
    and corrected over all of an arm; then answers in the language that was asked in."""
    lines = ["| | chance | before | best setting | p | paper's setting | p |", "|---" * 7 + "|"]
    keys = list(dict.fromkeys((r["task"], r["language"]) for r in rows if "chance" in r))
    tests = {arm: [_paired(rows, arm, *key) for key in keys] for arm in ("best", "paper")}
    corrected = {arm: holm([each[0] for each in found]) for arm, found in tests.items()}
    for number, (task, language) in enumerate(keys):
        before = _record(rows, "nothing", task, language)
        cells = [f"{task}, {language}", f"{before['chance']:.0%}"]
        cells.append(f"{before['correct']} of {before['items']}")
        for arm in ("best", "paper"):
            p, correct = tests[arm][number]
            cells += [str(correct), f"{p:.2g} ({corrected[arm][number]:.2g})"]
        lines.append(f"| {' | '.join(cells)} |")
    written = {arm: _in_asked_language(rows, arm) for arm in ("nothing", "best", "paper")}
    if all(written.values()):
        cells = [written["nothing"], written["best"], "", written["paper"], ""]
        lines.append(f"| answers in the language asked in | | {' | '.join(cells)} |")
    return "\n".join(lines)


def _record(rows: list[dict[str, Any]], arm: str, task: str, language: str) -> dict[str, Any]:
    return next(r for r in _of(rows, arm, task, language) if "chance" in r)


def _paired(rows: list[dict[str, Any]], arm: str, task: str, language: str) -> tuple[float, int]:
    """p of McNemar's exact test against the model before, and the right answers."""
    right = [
        {r["id"]: r["correct"] for r in _of(rows, each, task, language) if "id" in r}
        for each in ("nothing", arm)
    ]
    before, after = ([bool(items[key]) for key in right[0]] for items in right)
    return mcnemar_exact(before, after)[2], sum(after)


def _of(rows: list[dict[str, Any]], arm: str, task: str, language: str) -> Iterator[dict[str, Any]]:
    for row in rows:
        is_here = (row.get("task"), row.get("language")) == (task, language)
        if is_here and row["part"].endswith(f" {arm} 0"):
            yield row


def _in_asked_language(rows: list[dict[str, Any]], arm: str) -> str:
    answers = [row for row in rows if row["part"] == f"generation {arm} 0" and "asked" in row]
    same = sum(row["asked"] == row["written"] for row in answers)
    return f"{same} of {len(answers)}" if answers else ""


def span(values: list[str]) -> str:
    return values[0] if values[0] == values[-1] else f"{values[0]} to {values[-1]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("results", type=Path, nargs="+")
    files = parser.parse_args().results
    rows = [json.loads(line) for path in files for line in read_lines(path)[1:]]
    page = with_tables(PAGE.read_text(encoding="utf-8"), table(rows), BEGIN, END)
    if any("chance" in row for row in rows):
        page = with_tables(page, tasks_table(rows), TASKS_BEGIN, TASKS_END)
    PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
