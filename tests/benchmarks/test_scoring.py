"""The benchmark of scoring measures two ways that agree."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.bench_scoring import main


def test_both_ways_agree_and_are_measured(data_root: Path, tmp_path: Path) -> None:
    output = tmp_path / "scoring.jsonl"
    flags = ["--data", str(data_root / "eval"), "--items", "2", "--seconds", "0.01"]
    with pytest.raises(SystemExit) as stopped:
        main([*flags, "--output", str(output)])
    assert stopped.value.code is None
    rows = [json.loads(line) for line in output.read_text("utf-8").splitlines()]
    assert [(row["implementation"], row["status"]) for row in rows] == [
        ("eager", "ok"),
        ("crossalign", "ok"),
    ]
    assert rows[0]["texts"] == 18 and rows[0]["run"]["commit"]
