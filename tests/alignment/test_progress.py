"""What a run tells: the sizes of a step, and its values where no live line can be shown."""

from __future__ import annotations

import io
import json
import logging
import sys
import time
from pathlib import Path

import pytest
import torch

from crossalign.alignment.progress import Progress, rate, sizes_line
from tests.support.command_cases import Run
from tests.support.training import make_config, make_pairs

RECORD = {
    **{"step": 3, "contrastive_loss": 1.5, "lm_loss": 2.25, "accuracy": 0.5, "pairs": 8},
    **{"tokens": 100, "seconds": 0.5},
}
CPU = torch.device("cpu")


@pytest.mark.parametrize("shown", [True, False])
def test_without_a_terminal_a_line_now_and_then(
    shown: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    live = Progress(10, 2, shown=shown)
    for now, told in ((110.0, 0), (131.0, 1), (140.0, 0), (162.0, 1)):
        live.show(RECORD, CPU)
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == (told if shown else 0)
        for line in lines:
            # One step took all the time since the start; seven are left.
            left = {131.0: "0:03:37", 162.0: "0:07:14"}[now]
            expected = f"step 3 of 10: contrastive 1.500, lm 2.250, accuracy 50%, {left} left, "
            assert line.startswith(f"{expected}16 pairs/s, ") and line.endswith(", 200 tokens/s")
    live.close()
    assert capsys.readouterr().err == ""


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True

    def lines(self) -> list[str]:
        """What is seen: text after the last carriage return or clearing of each line."""
        return [line.rpartition("\r\x1b[K")[2] for line in self.getvalue().split("\n")]


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (
            80,
            "3/10  contrastive 1.500  lm 2.250  accuracy 50%  0:00:00 left  0.27 pairs/s  ",
        ),
        (60, "3/10  contrastive 1.500  lm 2.250  accuracy 50%  "),
        (12, "3/10"),
    ],
)
def test_a_live_line_has_what_fits(
    monkeypatch: pytest.MonkeyPatch, columns: int, expected: str
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr(time, "monotonic", lambda: 5.0)
    live = Progress(10, 2, shown=True)
    live.show({**RECORD, "seconds": 30.0}, CPU)
    (line,) = terminal.lines()
    assert line.startswith(expected.strip()) and len(line) < columns
    live.close()
    assert terminal.getvalue().endswith("\n")


@pytest.mark.parametrize("configured", [False, True])
@pytest.mark.parametrize("name", ["crossalign", "apart"])
def test_log_records_stay_above_the_line(
    monkeypatch: pytest.MonkeyPatch, configured: bool, name: str
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", "80")
    root, apart = logging.getLogger(), logging.getLogger("apart")
    monkeypatch.setattr(root, "handlers", [logging.StreamHandler(terminal)] if configured else [])
    monkeypatch.setattr(apart, "handlers", [logging.StreamHandler(terminal)])
    monkeypatch.setattr(apart, "propagate", False)
    before = [*root.handlers], [*apart.handlers]
    live = Progress(10, 2, shown=True)
    live.show(RECORD, CPU)
    logging.getLogger(name).warning("something happened")
    live.show({**RECORD, "step": 4}, CPU)
    live.close()
    first, second, last = terminal.lines()
    assert first == "something happened" and second.startswith("4/10") and last == ""
    assert (root.handlers, apart.handlers) == before


@pytest.mark.parametrize(
    ("value", "text"), [(0.0583, "0.058"), (1.94, "1.9"), (29.4, "29"), (4107.0, "4107")]
)
def test_rates_have_two_digits(value: float, text: str) -> None:
    assert rate(value) == text


def lines_of(folder: Path, name: str) -> list[str]:
    return (folder / "out" / f"{name}.jsonl").read_text().splitlines()


def test_a_run_ends_with_a_table(align: Run, tmp_path: Path) -> None:
    held_out = tmp_path / "held_out.tsv"
    pairs = make_pairs(36)[20:]
    held_out.write_text("".join(f"{pair.source}\t{pair.target}\n" for pair in pairs))
    _, out, _ = align("--evaluate-pairs", held_out, "--evaluate-every", 3)
    records = [json.loads(line) for line in lines_of(tmp_path, "metrics")]
    scores = [json.loads(line) for line in lines_of(tmp_path, "evaluations")]
    rows = [line.split() for line in out.splitlines()[1:-1]]
    assert rows[0] == ["step", "1", "step", "6"]
    losses = [f"{each['contrastive_loss']:.3f}" for each in (records[0], records[-1])]
    assert rows[1] == ["contrastive", "loss", *losses]
    assert rows[2][:2] == ["next-token", "loss"] and rows[3][0] == "accuracy"
    assert rows[4] == ["step", "0", "step", "6"]
    shown = [f"{each['retrieval_accuracy']:.1%}" for each in (scores[0], scores[-1])]
    assert rows[5] == ["retrieval", "accuracy", *shown]
    assert out.splitlines()[-1].startswith(f"wrote {tmp_path / 'out'}: the model after 6 steps")


def test_sizes_have_one_name_each() -> None:
    config = make_config(layer=(1, 2), chunk_size=16, lm_chunk_size=4)
    assert sizes_line(config, 100, 8, 3) == (
        "batch: 100 pairs (34 on each of 3 ranks), 16 sentences in a pass, 8 texts, 4 texts in a "
        "pass; aligned layers: 1, 2; chance-level contrastive loss: ln 100 = 4.61"
    )
    assert ", no texts; aligned layer: 1;" in sizes_line(make_config(layer=1), 4, 0, 1)


def test_command_tells_the_sizes_first(align: Run) -> None:
    status, out, error = align()
    assert (status, error) == (0, "")
    first, *_, last = out.splitlines()
    assert first.startswith("batch: 8 pairs, 8 texts;") and last.startswith("wrote ")
    assert ", no texts; " in align("--lm-weight", 0, output="without")[1]
