"""The table of faults is what its result files say, and counts what went wrong as such."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.faults import table
from benchmarks.provenance import ROOT
from benchmarks.report import with_tables

RUN = {"commit": "0123456789ab", "dirty": False, "date": "2026-01-02T03:04:05Z", "device": "a CPU"}


def row(**values: Any) -> dict[str, Any]:
    told = {"message": "out/metrics.jsonl: full", "names_file": True, "traceback": False}
    return {"run": RUN, "where": "call 1 of 9", **told, "resumed": 0, "same_end": True, **values}


def test_the_committed_table_is_current() -> None:
    page = table.PAGE.read_text()
    assert page == with_tables(page, table.render(table.read()), table.BEGIN, table.END)


def test_what_went_wrong_is_not_counted_as_right() -> None:
    rows = [
        row(fault="full disk"),
        row(fault="full disk", same_end=False),
        row(fault="full disk", resumed=1),
        row(fault="full disk", names_file=False),
        row(fault="full disk", message=""),
        row(fault="full disk", traceback=True),
    ]
    path = ROOT / "benchmarks" / "results" / "faults_x.jsonl"
    (line,) = [each for each in table.render([(path, rows)]).splitlines() if "disk full" in each]
    assert "| 6 of the 9 calls | 4 | 3 of 5 | [a CPU, 0123456]" in line
    assert table.render([]).count("not measured") == len(table.KINDS)


def test_kills_count_by_the_run_that_took_them() -> None:
    kills = [row(fault="kill", where="any moment", message="") for _ in range(3)]
    for same, told in ((True, "the one run that took them all"), (False, "none")):
        last = row(fault="kill", where="after all of them", same_end=same)
        shown = table.render([(Path(ROOT / "faults_x.jsonl"), [*kills, last])])
        assert f"| 3 | {told} | - |" in shown
