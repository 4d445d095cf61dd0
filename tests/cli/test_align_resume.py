"""crossalign align, stopped, killed and resumed: as if it had never been."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from crossalign.alignment.checkpoint import Checkpoints
from crossalign.alignment.train import AlignmentRun
from tests.support.command_cases import Run, assert_one_line, metrics_of


def interrupt_after(monkeypatch: pytest.MonkeyPatch, step: int, number: signal.Signals) -> None:
    """The signal comes during that step's update, as it would from outside."""
    update = AlignmentRun._update

    def interrupted(self: AlignmentRun, *arguments: Any) -> Any:
        result = update(self, *arguments)
        if self.step == step:
            os.kill(os.getpid(), number)
        return result

    monkeypatch.setattr(AlignmentRun, "_update", interrupted)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopped_run_goes_on_as_if_never_stopped(
    align: Run, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    assert align(output="straight")[0] == 0
    handlers = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        interrupt_after(patch, 3, number)
        status, out, error = align()
    assert (status, error) == (0, "")
    assert "stopped after step 3 of 6; --resume goes on from there" in out
    assert handlers == (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT))
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out") is not None
    status, _, error = run("align", "--resume", "--output", tmp_path / "out")
    assert (status, error) == (0, "")
    assert metrics_of(tmp_path / "out") == metrics_of(tmp_path / "straight")
    weights = [
        AutoModelForCausalLM.from_pretrained(tmp_path / name).state_dict()
        for name in ("out", "straight")
    ]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_killed_run_goes_on_from_its_last_save(
    align: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Metrics after the last save are made again, not twice; half a save or line does no harm."""
    assert align(output="straight")[0] == 0
    save = Checkpoints.save

    def broken_save(self: Checkpoints, alignment: AlignmentRun) -> None:
        if alignment.step == 4:
            with monkeypatch.context() as patch:
                patch.setattr(torch, "save", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
                save(self, alignment)
        save(self, alignment)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", broken_save)
        status, _, error = align("--save-every", 2)
    assert status == 1
    assert_one_line(error, "disk full")
    directory = tmp_path / "out"
    assert len(metrics_of(directory)) == 4
    assert not [path.name for path in directory.iterdir() if path.name.startswith(".")]
    assert [path.name for path in (directory / "checkpoints").iterdir()] == ["step-2"]
    state = directory / "checkpoints" / "step-2" / "training_state.pt"
    assert torch.load(state, weights_only=True)["step"] == 2
    with open(directory / "metrics.jsonl", "a") as metrics:
        metrics.write('{"step": 5, "lo')
    half = directory / "checkpoints" / ".saving.x"
    half.mkdir()
    (half / "model.safetensors").write_text("half")
    assert align("--resume", "--save-every", 3)[0] == 0
    assert not half.exists()
    assert metrics_of(directory) == metrics_of(tmp_path / "straight")


def test_finished_run_may_be_given_more_steps(align: Run, run: Run, tmp_path: Path) -> None:
    assert align()[0] == 0
    directory = tmp_path / "out"
    before = metrics_of(directory)
    assert run("align", "--resume", "--output", directory)[0] == 0
    assert metrics_of(directory) == before
    assert run("align", "--resume", "--output", directory, "--steps", 8, "--chunk-size", 4)[0] == 0
    assert metrics_of(directory)[:6] == before
    assert [record["step"] for record in metrics_of(directory)] == list(range(1, 9))


def test_resume_refuses_another_run(align: Run, run: Run, tmp_path: Path, pairs_file: Path) -> None:
    assert align("--steps", 2)[0] == 0
    resume = ["align", "--resume", "--output", tmp_path / "out"]
    status, _, error = run(*resume, "--temperature", "0.1")
    assert status == 2
    assert_one_line(error, "temperature is 0.1, but the run to resume has 0.05")
    status, _, error = run(*resume, "--steps", 1)
    assert status == 1
    assert_one_line(error, "steps is 1, but the run has made 2")
    pairs_file.write_text(pairs_file.read_text() + "w5\tw6\n")
    status, _, error = run(*resume)
    assert status == 1
    assert_one_line(error, "not those that this run was trained on")
    state = tmp_path / "out" / "checkpoints" / "step-2" / "training_state.pt"
    state.write_bytes(b"junk")
    status, _, error = run(*resume)
    assert status == 1
    assert_one_line(
        error, "training_state.pt: damaged: 4 bytes, written were", "a new run in another"
    )
    status, _, error = run("align", "--resume", "--output", tmp_path / "none")
    assert status == 1
    assert_one_line(error, "none/config.yaml: cannot be read")
    status, _, error = run("align", "--resume")
    assert status == 2
    assert_one_line(error, "--resume needs --output")


def test_signal_from_outside_stops_a_process_in_order(
    model_dir: Path, pairs_file: Path, tmp_path: Path
) -> None:
    """The real thing once: a process, SIGTERM after some steps, status 0 and a state to resume."""
    output = tmp_path / "out"
    command = [sys.executable, "-m", "crossalign", "align", "--model", model_dir, "--pairs"]
    command += [pairs_file, "--output", output, "--steps", "100000", "--batch-size", "4"]
    with subprocess.Popen(
        [str(each) for each in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        deadline = time.monotonic() + 100
        metrics = output / "metrics.jsonl"
        while not (metrics.exists() and metrics.read_text().count("\n") >= 2):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        out, error = process.communicate(timeout=60)
    assert process.returncode == 0, error
    assert re.search(r"stopped after step \d+ of 100000", out)
    (saved,) = (output / "checkpoints").glob("step-*")
    state = torch.load(saved / "training_state.pt", weights_only=True)
    assert state["step"] == len(metrics_of(output))
