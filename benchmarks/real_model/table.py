"""Writes the table of docs/real-model.md from a result file of align_real_model.

python -m benchmarks.real_model.table benchmarks/results/real_model_*.jsonl
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.provenance import ROOT
from benchmarks.real_model.plot import accuracies
from benchmarks.report import with_tables
from crossalign.files.text import read_lines

PAGE = ROOT / "docs" / "real-model.md"
BEGIN, END = "<!-- real model: begin -->", "<!-- real model: end -->"
ARMS = {"nothing": "before", "paper": "the paper's setting", "best": "best setting found"}
ARMS |= {"joint": "the same with the paper's next-token loss"}
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
    head = ["", *COLUMNS, "worst bits per byte", "XWinograd, English"]
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
        cells.append(choices(rows, arm))
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def bits(rows: list[dict[str, Any]], arm: str) -> list[dict[str, float]]:
    """Language -> bits per byte, seed by seed."""
    found: dict[str, dict[str, float]] = {}
    for row in rows:
        if row["part"].startswith(f"test {arm} ") and "bits_per_byte" in row:
            found.setdefault(row["part"], {})[row["language"]] = row["bits_per_byte"]
    return list(found.values())


def choices(rows: list[dict[str, Any]], arm: str) -> str:
    found = [
        row
        for row in rows
        if row.get("task") == "xwinograd"
        and row.get("language") == "en"
        and "accuracy" in row
        and row["part"].endswith(f" {arm} 0")
    ]
    return f"{found[0]['correct']} of {found[0]['items']}" if found else ""


def span(values: list[str]) -> str:
    return values[0] if values[0] == values[-1] else f"{values[0]} to {values[-1]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("result", type=Path)
    rows = [json.loads(line) for line in read_lines(parser.parse_args().result)][1:]
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(with_tables(page, table(rows), BEGIN, END), encoding="utf-8")


if __name__ == "__main__":
    main()
