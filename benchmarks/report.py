"""Turns result files into the tables of docs/benchmarks.md, between its two markers.

python -m benchmarks.report            # rewrites the tables
python -m benchmarks.report --check    # exits 1 if they are not what the files say
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.bench_gather import CASES as GATHER_CASES
from benchmarks.provenance import RESULTS, ROOT
from benchmarks.train_step_cases import PRESETS, Case

PAGE = ROOT / "docs" / "benchmarks.md"
BEGIN, END = "<!-- benchmarks: begin -->", "<!-- benchmarks: end -->"
NOT_MEASURED = "not measured"

Row = dict[str, Any]


class Wanted(NamedTuple):
    """One line of a table: what it is called, and which rows of a result file fill it."""

    title: str
    on_gpu: bool
    where: dict[str, Any]


class Table(NamedTuple):
    """The last column compares the two implementations named."""

    title: str
    subject: str
    implementations: tuple[str, ...]
    lines: Sequence[Wanted]
    ours: str = "crossalign"
    plain: str = "eager"


def contrastive_line(n: int, d: int, dtype: str, symmetric: bool, on_gpu: bool) -> Wanted:
    direction = "symmetric" if symmetric else "one direction"
    where = {"n": n, "d": d, "dtype": dtype, "symmetric": symmetric, "option": "plain"}
    return Wanted(f"{dtype}, N = {n:,}, D = {d:,}, {direction}", on_gpu, where)


def pooling_line(layout: str, size: tuple[int, int, int], dtype: str, on_gpu: bool) -> Wanted:
    b, t, c = size
    where = {"layout": layout, "b": b, "t": t, "c": c, "dtype": dtype}
    return Wanted(f"{dtype}, {layout}, {b} x {t} x {c:,}", on_gpu, where)


def step_line(case: Case, on_gpu: bool) -> Wanted:
    where = {name: getattr(case, name) for name in ("architecture", "blocks", "width", "name")}
    title = f"{case.dtype}, {case.blocks} blocks of width {case.width:,}, {case.name}"
    return Wanted(f"{title}, {case.texts} texts of {case.text_length}", on_gpu, where)


def gather_line(rows: int, columns: int, dtype: str, ranks: int, on_gpu: bool) -> Wanted:
    where = {"ranks": ranks, "rows": rows, "columns": columns, "dtype": dtype}
    title = f"{dtype}, {ranks} ranks of {rows:,} rows of {columns:,}"
    return Wanted(title, on_gpu, where)


TABLES = (
    Table(
        "Contrastive loss on a CPU, forward and backward",
        "contrastive",
        ("crossalign", "eager", "torch.compile"),
        [
            contrastive_line(n, 256, "float32", s, False)
            for n in (8192, 16_384)
            for s in (False, True)
        ],
    ),
    Table(
        "Contrastive loss on a GPU, forward and backward",
        "contrastive",
        ("crossalign", "eager", "torch.compile", "inf-cl"),
        [
            contrastive_line(65_536, 1024, "bfloat16", True, True),
            *(contrastive_line(65_536, d, "bfloat16", True, True) for d in (256, 512, 2048, 4096)),
            contrastive_line(32_768, 1024, "bfloat16", True, True),
            contrastive_line(32_768, 1024, "bfloat16", False, True),
            contrastive_line(16_384, 1024, "bfloat16", True, True),
            contrastive_line(2**20, 1024, "bfloat16", True, True),
        ],
    ),
    Table(
        "Mean pooling, forward and backward",
        "pooling",
        ("crossalign", "eager", "torch.compile"),
        [
            pooling_line("padded", (256, 512, 4096), "bfloat16", True),
            pooling_line("packed", (256, 512, 4096), "bfloat16", True),
            pooling_line("padded", (64, 128, 1024), "float32", False),
            pooling_line("packed", (64, 128, 1024), "float32", False),
        ],
    ),
    Table(
        "One alignment step: both losses, their gradients and the update",
        "train_step",
        ("crossalign", "eager"),
        [
            *(step_line(case, on_gpu=True) for case in PRESETS["gpu"]),
            *(step_line(case, on_gpu=False) for case in PRESETS["cpu"]),
        ],
    ),
    Table(
        "Scoring the choices of XNLI without demonstrations, English, Swahili and Chinese",
        "scoring",
        ("crossalign", "eager"),
        [Wanted("float32, Gemma 3 270M, batches of 8", False, {"batch_size": 8})],
    ),
    Table(
        "Gather of negatives between processes of one machine, forward and backward",
        "gather",
        (
            *("crossalign extension", "crossalign collective"),
            *("all_gather + reduce_scatter", "all_gather_tensor_autograd"),
        ),
        [
            gather_line(16_384, 1024, "bfloat16", 8, True),
            gather_line(16_384, 1024, "bfloat16", 2, True),
            *(gather_line(n, d, "float32", 2, False) for n, d in GATHER_CASES),
        ],
        ours="crossalign extension",
        plain="all_gather + reduce_scatter",
    ),
)


class ResultFile(NamedTuple):
    path: Path
    rows: list[Row]

    @property
    def run(self) -> Row:
        return self.rows[0]["run"]


def read_results(paths: Sequence[Path]) -> list[ResultFile]:
    """Those of the harness, newest first; runs of another form have no table here."""
    read = [
        ResultFile(path, [json.loads(line) for line in path.read_text().splitlines()])
        for path in paths
    ]
    filled = [result for result in read if result.rows and "run" in result.rows[0]]
    return sorted(filled, key=lambda result: result.run["date"], reverse=True)


def fill(line: Wanted, table: Table, results: Sequence[ResultFile]) -> list[str]:
    """The newest file that compares in this line fills all of it, so that ratios are of one file;
    where none does, the newest that has it."""
    found = [(result, rows) for result in results if (rows := rows_of(line, table, result))]
    compared = [each for each in found if len(each[1]) > 1]
    for result, rows in compared or found:
        cells = [cell(rows.get(name)) for name in table.implementations]
        return [*cells, ratios(rows.get(table.ours), rows.get(table.plain)), source(result)]
    return [NOT_MEASURED] * (len(table.implementations) + 1) + ["-"]


def rows_of(line: Wanted, table: Table, result: ResultFile) -> dict[str, Row]:
    """By implementation."""
    on_gpu = "multiprocessors" in result.run
    if result.run["subject"] != table.subject or on_gpu != line.on_gpu:
        return {}
    return {
        row["implementation"]: row
        for row in result.rows
        if all(row.get(key) == value for key, value in line.where.items())
        and row.get("pass", "both") in ("both", "step")
    }


def cell(row: Row | None) -> str:
    if row is None:
        return NOT_MEASURED
    if row["status"] != "ok":
        return str(row["status"]).split(":")[0]
    memory = "" if row.get("peak_mib") is None else f", {row['peak_mib']:,.0f} MiB"
    share = ""
    if row["implementation"] == "crossalign":
        share = f", {row['share_of_ceiling']:.0%} of the ceiling"
    return f"{significant(row['median_ms'])} ms{memory}{share}"


def ratios(ours: Row | None, plain: Row | None) -> str:
    if ours is None or plain is None or {ours["status"], plain["status"]} != {"ok"}:
        return "-"
    text = f"{ours['median_ms'] / plain['median_ms']:.2f} of the time"
    if ours.get("peak_mib") and plain.get("peak_mib"):
        text += f", {ours['peak_mib'] / plain['peak_mib']:.3f} of the memory"
    return text


def source(result: ResultFile) -> str:
    changed = " with changes" if result.run["dirty"] else ""
    path = result.path.resolve()
    link = f"../{path.relative_to(ROOT)}" if path.is_relative_to(ROOT) else path.name
    return f"[{result.run['device']}, {result.run['commit'][:7]}{changed}]({link})"


def significant(value: float) -> str:
    """Three significant digits, without an exponent."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def render(results: Sequence[ResultFile]) -> str:
    parts = []
    for table in TABLES:
        compared = f"{table.ours} against {table.plain}"
        head = ["case", *table.implementations, compared, "measured on"]
        lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
        for line in table.lines:
            lines.append(f"| {' | '.join([line.title, *fill(line, table, results)])} |")
        parts.append(f"**{table.title}**\n\n" + "\n".join(lines))
    return "\n\n".join(parts)


def with_tables(page: str, tables: str, begin: str = BEGIN, end: str = END) -> str:
    """The page with what stands between the two markers replaced."""
    before, found_begin, rest = page.partition(begin)
    _, found_end, after = rest.partition(end)
    if not found_begin or not found_end:
        raise ValueError(f"the page must hold the markers {begin} and {end}")
    return f"{before}{begin}\n\n{tables}\n\n{end}{after}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing, exit 1 if outdated")
    arguments = parser.parse_args()
    current = PAGE.read_text()
    wanted = with_tables(current, render(read_results(sorted(RESULTS.glob("*.jsonl")))))
    if arguments.check:
        sys.exit(None if wanted == current else f"{PAGE} is outdated: python -m benchmarks.report")
    PAGE.write_text(wanted)


if __name__ == "__main__":
    main()
