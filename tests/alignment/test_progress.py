"""What a run tells: the sizes of a step, and its values where no live line can be shown."""

from __future__ import annotations

import pytest
import torch

from crossalign.alignment import progress
from crossalign.alignment.progress import Progress, sizes_line
from tests.support.command_cases import Run
from tests.support.training import make_config

RECORD = {
    **{"step": 3, "contrastive_loss": 1.5, "lm_loss": 2.25, "accuracy": 0.5, "pairs": 8},
    **{"tokens": 100, "seconds": 0.5},
}


@pytest.mark.parametrize("shown", [True, False])
def test_without_a_terminal_a_line_now_and_then(
    shown: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 100.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    live = Progress(10, 2, shown=shown)
    for now, told in ((110.0, 0), (131.0, 1), (140.0, 0), (162.0, 1)):  # noqa: B007
        live.show(RECORD, torch.device("cpu"))
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == (told if shown else 0)
        for line in lines:
            expected = "step 3 of 10: contrastive 1.500, lm 2.250, accuracy 50.0%, pairs/s 16, tok"
            assert line.startswith(expected)
    live.close()
    assert capsys.readouterr().err == ""


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
    first, last = out.splitlines()
    assert first.startswith("batch: 8 pairs, 8 texts;") and last.startswith("wrote ")
    assert ", no texts; " in align("--lm-weight", 0, output="without")[1]
