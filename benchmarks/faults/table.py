"""Turns the newest results of benchmarks.faults.measure into the table of docs/reliability.md.

python -m benchmarks.faults.table            # rewrites the table
python -m benchmarks.faults.table --check    # exits 1 if it is not what the file says
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.provenance import RESULTS, ROOT
from benchmarks.report import with_tables

PAGE = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- faults: begin -->", "<!-- faults: end -->"
Row = dict[str, Any]

KINDS = {
    "a file of the newest checkpoint cut, emptied, or with one bit flipped": ("damaged file", "n"),
    "a file of the run's own directory likewise": ("damaged file", "r"),
    "the disk full from one call on that changes a file": ("full disk", ""),
    "SIGKILL while a checkpoint is written": ("kill", "inside"),
    "SIGKILL at a random moment": ("kill", "any"),
}


def read(folder: Path = RESULTS) -> list[tuple[Path, list[Row]]]:
    """The result files, newest first."""
    paths = folder.glob("faults_*.jsonl")
    found = [(path, list(map(json.loads, path.read_text().splitlines()))) for path in paths]
    filled = [(path, rows) for path, rows in found if rows]
    return sorted(filled, key=lambda each: str(each[1][0]["run"]["date"]), reverse=True)


def render(results: Sequence[tuple[Path, list[Row]]]) -> str:
    """A line of each kind. Of one commit all files count, of a file several kinds may."""
    lines = [
        "| fault | cases | runs that ended with the same bits | messages that name the file | by |",
        "|---|---|---|---|---|",
    ]
    for title, (fault, where) in KINDS.items():
        fits = [
            (path, row)
            for path, rows in results
            for row in rows
            if row["fault"] == fault and row["where"].startswith(where)
        ]
        if not fits:
            lines.append(f"| {title} | not measured | - | - | - |")
            continue
        commit = fits[0][1]["run"]["commit"]
        fits = [each for each in fits if each[1]["run"]["commit"] == commit]
        rows = [row for _, row in fits]
        cells = [title, _cases(rows), _ends(rows, results), _named(rows), _source(fits)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _cases(rows: Sequence[Row]) -> str:
    """How many, and of the calls of a full disk how many there are."""
    calls = rows[0]["where"].partition(" of ")[2]
    return f"{len(rows)} of the {calls} calls" if calls else str(len(rows))


def _ends(rows: Sequence[Row], results: Sequence[tuple[Path, list[Row]]]) -> str:
    if rows[0]["fault"] != "kill":
        return str(sum(row["same_end"] and row["resumed"] == 0 for row in rows))
    date = rows[0]["run"]["date"]  # one run took all kills of a file
    ends = [r for _, found in results for r in found if r["where"] == "after all of them"]
    same = all(r["same_end"] for r in ends if r["run"]["date"] == date)
    return "the one run that took them all" if ends and same else "none"


def _named(rows: Sequence[Row]) -> str:
    spoken = [row for row in rows if row["message"]]
    if not spoken:
        return "-"
    return f"{sum(row['names_file'] and not row['traceback'] for row in spoken)} of {len(spoken)}"


def _source(fits: Sequence[tuple[Path, Row]]) -> str:
    run = fits[0][1]["run"]
    changed = " with changes" if run["dirty"] else ""
    links = [
        f"[{run['device']}, {run['commit'][:7]}{changed}](../{path.resolve().relative_to(ROOT)})"
        for path in dict.fromkeys(path for path, _ in fits)
    ]
    return " and ".join(links)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing, exit 1 if outdated")
    arguments = parser.parse_args()
    current = PAGE.read_text()
    wanted = with_tables(current, render(read()), BEGIN, END)
    if arguments.check:
        sys.exit(None if wanted == current else f"{PAGE}: python -m benchmarks.faults.table")
    PAGE.write_text(wanted)


if __name__ == "__main__":
    main()
