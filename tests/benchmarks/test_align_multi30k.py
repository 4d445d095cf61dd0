"""The end-to-end benchmark runs, and writes where its numbers come from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.align_multi30k import main


def test_benchmark_runs_at_a_small_size(
    data_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "results" / "run.jsonl"
    sizes = {
        "texts": 200,
        "pairs": 100,
        "hidden-size": 16,
        "blocks": 2,
        "vocabulary-size": 400,
        "pretraining-steps": 2,
        "steps": 3,
        "batch-size": 16,
        "lm-batch-size": 4,
    }
    flags = [f"--{name}={size}" for name, size in sizes.items()]
    main([f"--data={data_root}", f"--output={output}", *flags])
    run, result = [json.loads(line) for line in output.read_text().splitlines()]
    assert run["commit"] and run["torch"] and run["device"]
    assert run["arguments"]["pairs"] == 100
    assert result["last_step"]["step"] == 3
    shown = capsys.readouterr().out
    for when in ("before", "after"):
        for way in ("en_de", "de_en"):
            assert 0 <= result[f"{when}_{way}"] <= 1
            assert f"{result[f'{when}_{way}']:.1%}" in shown
