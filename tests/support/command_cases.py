"""What the tests of commands share: how a command is called, what it printed and left."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

Run = Callable[..., tuple[int, str, str]]  # exit status, standard output, standard error


def metrics_of(directory: Path) -> list[dict[str, Any]]:
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    for record in records:
        del record["seconds"]
    return records


def assert_one_line(error: str, *parts: str) -> None:
    assert error.count("\n") == 1 and error.endswith("\n"), error
    for part in parts:
        assert part in error
