"""What `crossalign align` says at its end: losses and accuracy first and last, and evaluations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from crossalign.alignment.records import EVALUATIONS_FILE, METRICS_FILE
from crossalign.files.text import read_lines

_NAMES = {"contrastive_loss": "contrastive loss", "lm_loss": "next-token loss"}


def closing_table(directory: Path) -> str:
    """A table of the records of a run: each value at the first step that has it and at the last."""
    lines: list[str] = []
    for name in (METRICS_FILE, EVALUATIONS_FILE):
        path = directory / name
        has_lines = path.exists() and path.stat().st_size > 0
        records = [json.loads(line) for line in read_lines(path)] if has_lines else []
        if records:
            first, last = f"step {records[0]['step']}", f"step {records[-1]['step']}"
            lines.append(f"{'':24}{first:>12}{last:>12}")
            lines += [_row(each, records) for each in _worth_a_row(name, records[-1])]
    return "\n".join(lines)


def _worth_a_row(file: str, record: dict[str, Any]) -> list[str]:
    if file == METRICS_FILE:
        return ["contrastive_loss", "lm_loss", "accuracy"]
    return [name for name in record if name != "step"]


def _row(name: str, records: list[dict[str, Any]]) -> str:
    first, last = records[0].get(name), records[-1].get(name)
    shown = [_value(name, each) for each in (first, last)]
    label = _NAMES.get(name, name.replace("_", " "))
    return f"{label:24}{shown[0]:>12}{shown[1]:>12}"


def _value(name: str, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if name.endswith("loss") else f"{value:.1%}"
