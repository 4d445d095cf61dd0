"""A full disk outside of a checkpoint: the message names the file and the way out."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from crossalign.alignment.checkpoint import Checkpoints
from crossalign.alignment.train import AlignmentRun
from crossalign.evaluation.finished_parts import FinishedParts
from crossalign.files.output import atomic_directory, write_whole
from tests.support.command_cases import Run, assert_one_line
from tests.support.tiny_models import tiny_model, tiny_tokenizer
from tests.support.training import make_config, make_pairs


def full(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_records_that_do_not_fit_name_file_checkpoint_and_way_out(
    align: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was "[Errno 28] No space left on device" and no more."""
    assert align("--save-every", 3, "--steps", 3)[0] == 0
    with monkeypatch.context() as patch:
        patch.setattr("crossalign.alignment.run_directory.os.fsync", full)
        patch.setattr("crossalign.files.output.flush", lambda path: None)
        patch.setattr("crossalign.files.output.flush_names", lambda path: None)
        status, _, error = align("--save-every", 3, "--resume")
    assert status == 1
    step = tmp_path / "out" / "checkpoints" / "step-3"
    assert_one_line(
        error,
        f"{tmp_path / 'out' / 'metrics.jsonl'}: cannot be written: No space left on device",
        f"of the checkpoints the last complete one is {step}; make room, then --resume",
    )
    assert align("--save-every", 3, "--resume")[0] == 0


def test_a_checkpoint_that_does_not_fit_says_so_where_pytorch_hides_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTorch's writer said "unexpected pos 31936 vs 31828"."""
    run = AlignmentRun(tiny_model("gpt2"), tiny_tokenizer(), make_pairs(9), make_config())
    save = torch.save

    class Full:
        """The open file, on a disk with room for some of it."""

        def __init__(self, file: Any) -> None:
            self.file = file

        def write(self, content: bytes) -> int:
            if self.file.tell() > 1000:
                full()
            return int(self.file.write(content))

        def flush(self) -> None:
            self.file.flush()

    monkeypatch.setattr(torch, "save", lambda state, file: save(state, cast(Any, Full(file))))
    with pytest.raises(OSError, match=r"training_state.pt: No space left on device; none is"):
        Checkpoints(tmp_path).save(run)


@pytest.mark.parametrize("what", ["file", "folder"])
def test_results_that_do_not_fit_name_their_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    target = tmp_path / "result"
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=f"No space left on device: '{target}'"):
        if what == "file":
            write_whole(target, "text")
        else:
            with atomic_directory(target) as folder:
                (folder / "table.csv").write_text("1")
    assert not list(tmp_path.iterdir())


def test_every_command_names_the_way_out(
    run: Run, pairs_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", full)
    output = tmp_path / "items.jsonl"
    command = ["data", "build", "--mode", "translation", "--languages", "en", "de"]
    command += ["--cache", str(tmp_path / "cache")]
    (tmp_path / "cache").mkdir()
    status, _, error = run(*command, "--input", pairs_file, "--output", output)
    assert status == 1
    assert_one_line(
        error,
        "cannot be written: No space left on device; make room there, or name another folder "
        "(--output, --cache or TMPDIR)",
        str(tmp_path),
    )
    assert not output.exists()


def test_a_lock_that_cannot_be_written_names_itself(
    align: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was "a file: cannot be written"."""
    monkeypatch.setattr("crossalign.files.lock.os.ftruncate", full)
    status, _, error = align()
    assert status == 1
    assert_one_line(error, f"{tmp_path / 'out' / '.lock'}: cannot be written: No space left")


def test_finished_parts_that_do_not_fit_name_their_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was said of standard output."""
    monkeypatch.setattr("crossalign.evaluation.finished_parts.os.fsync", full)
    parts = FinishedParts(tmp_path / "r.parts.jsonl", {}, resume=False)
    with pytest.raises(OSError, match=f"No space left on device: '{parts.path}'"):
        parts.add({"part": 1}, {}, [])


def test_standard_output_on_a_full_disk_is_named(
    pairs_file: Path,
) -> None:
    command = [sys.executable, "-m", "crossalign", "data", "check", "--pairs", str(pairs_file)]
    with open("/dev/full", "w") as disk:
        done = subprocess.run(command, stdout=disk, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert_one_line(done.stderr, "standard output: cannot be written: No space left on device")
