"""Runs that end early: killed, told to stop, out of disk, not finite; and how they go on."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from crossalign.alignment.checkpoint import STATE_FILE, Checkpoints
from crossalign.cli.main import main
from crossalign.files.manifest import check_manifest, write_manifest
from tests.support.command_cases import Run, metrics_of
from tests.support.process_group import PRELOADED

STEPS = 24
SMALL: list[object] = ["--batch-size", 8, "--steps", STEPS, "--learning-rate", "1e-3"]
SMALL += ["--device", "cpu", "--save-every", 3, "--chunk-size", 3]


class Command:
    """`crossalign align` in a process of its own, forked from a server that has imported PyTorch:
    a process from nothing takes seconds."""

    def __init__(self, *flags: object, largest_file: int | None = None) -> None:
        self._output = tempfile.TemporaryDirectory()
        self.streams = [Path(self._output.name) / name for name in ("out", "error")]
        for path in self.streams:
            path.touch()  # it may be killed before it opens them
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(list(PRELOADED))
        arguments = (list(map(str, flags)), self.streams, largest_file)
        self._process = context.Process(target=_run, args=arguments)
        self._process.start()

    def wait_for(self, condition: Callable[[], bool]) -> None:
        while self._process.is_alive() and not condition():
            time.sleep(0.001)

    def send(self, number: signal.Signals) -> None:
        if self._process.is_alive():
            os.kill(int(self._process.pid or 0), number)

    def result(self) -> tuple[int | None, str, str]:
        """Exit status, standard output and standard error."""
        self._process.join(timeout=120)
        with self._output:
            out, error = (path.read_text() for path in self.streams)
        return self._process.exitcode, out, error


def _run(flags: list[str], streams: list[Path], largest_file: int | None) -> None:
    for path, descriptor in zip(streams, (1, 2), strict=True):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), descriptor)
    torch.set_num_threads(1)
    if largest_file is not None:  # a write past this fails as on a full disk, by another number
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    status = main(["align", *flags])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def steps_made(directory: Path) -> int:
    metrics = directory / "metrics.jsonl"
    return metrics.read_text().count("\n") if metrics.exists() else 0


def long_run(directory: Path, model_dir: Path, pairs_file: Path, until: int) -> Command:
    """A command that would go on for ever, once it has made so many steps."""
    flags = ["--model", model_dir, "--pairs", pairs_file, *SMALL, "--steps", 100_000]
    command = Command(*flags, "--output", directory)
    command.wait_for(lambda: steps_made(directory) >= until)
    return command


def kill_and_resume(
    tmp_path: Path, flags: list[object], moments: list[int], inside_a_save: int, seed: int
) -> None:
    """SIGKILL a random while after the run made so many steps, each time, and so many times more
    while a checkpoint is being written; then let it end."""
    chance, directory = random.Random(seed), tmp_path / "killed"
    resume: list[object] = []
    folder = directory / "checkpoints"
    for moment in [*moments, *[None] * inside_a_save]:
        command = Command(*flags, "--output", directory, *resume)
        if moment is None:
            before = steps_made(directory)
            command.wait_for(
                lambda made=before: (  # type: ignore[misc]
                    steps_made(directory) > made and any(folder.glob(".saving.*/*"))
                )
            )
            time.sleep(chance.random() * 0.005)
        else:
            command.wait_for(lambda made=moment: steps_made(directory) >= made)  # type: ignore[misc]
            time.sleep(chance.random() * 0.02)  # a step takes about as long, and so does a save
        command.send(signal.SIGKILL)
        assert command.result()[0] in (-signal.SIGKILL, 0)
        resume = ["--resume"] if (directory / "config.yaml").exists() else []
        checkpoints = Checkpoints(directory)
        for step in checkpoints.steps():
            check_manifest(checkpoints.path(step))
            assert torch.load(checkpoints.path(step) / STATE_FILE)["step"] == step
            assert AutoModelForCausalLM.from_pretrained(checkpoints.path(step)) is not None
    status, _, error = Command(*flags, "--output", directory, *resume).result()
    assert (status, error) == (0, "")


@pytest.mark.parametrize(
    ("moments", "inside_a_save", "steps"),
    [
        pytest.param([1, 8], 1, STEPS, id="three"),
        pytest.param([*range(0, 60, 3)], 10, 120, id="thirty", marks=[pytest.mark.slow]),
    ],
)
def test_killed_at_any_moment_the_run_ends_as_if_it_had_not_been(
    tmp_path: Path,
    model_dir: Path,
    pairs_file: Path,
    moments: list[int],
    inside_a_save: int,
    steps: int,
) -> None:
    """Bit for bit, with dropout; and every checkpoint that has its name can be loaded."""
    flags = ["--model", model_dir, "--pairs", pairs_file, *SMALL, "--steps", steps]
    straight = Command(*flags, "--output", tmp_path / "straight")
    kill_and_resume(tmp_path, flags, moments, inside_a_save, seed=len(moments))
    assert straight.result()[0] == 0
    killed, whole = (load_file(tmp_path / name / "model.safetensors") for name in _BOTH)
    assert all(torch.equal(killed[name], whole[name]) for name in whole)
    assert metrics_of(tmp_path / "killed") == metrics_of(tmp_path / "straight")
    assert not list((tmp_path / "killed").rglob(".saving.*"))


_BOTH = ("killed", "straight")


def test_sigterm_saves_and_exits_0(tmp_path: Path, model_dir: Path, pairs_file: Path) -> None:
    directory = tmp_path / "out"
    command = long_run(directory, model_dir, pairs_file, until=4)
    command.send(signal.SIGTERM)
    status, out, error = command.result()
    assert (status, error) == (0, "")
    made = steps_made(directory)
    assert f"stopped after step {made} of 100000; --resume goes on from there" in out
    assert Checkpoints(directory).steps()[-1] == made
    assert AutoTokenizer.from_pretrained(directory)("w3")["input_ids"] == [3]


def test_both_ranks_of_torchrun_stop_at_sigterm(
    tmp_path: Path, model_dir: Path, pairs_file: Path
) -> None:
    """Whichever rank hears of it first, they stop after the same step."""
    directory = tmp_path / "out"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    torchrun += ["--standalone", "-m", "crossalign", "align", "--model", str(model_dir)]
    torchrun += ["--pairs", str(pairs_file), "--output", str(directory), *map(str, SMALL)]
    process = subprocess.Popen(
        [*torchrun, "--steps", "100000"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    while process.poll() is None and steps_made(directory) < 4:
        time.sleep(0.01)
    process.terminate()
    out, _ = process.communicate(timeout=120)
    made = steps_made(directory)
    assert f"stopped after step {made} of 100000" in out, out
    state = torch.load(Checkpoints(directory).path(made) / STATE_FILE)
    assert state["step"] == made and len(state["generators"]) == 2


LARGEST_FILE = 200_000  # bytes: the tiny model's weights fit, its weights with moments do not


def test_full_disk_is_said_and_harms_no_earlier_checkpoint(
    tmp_path: Path, model_dir: Path, pairs_file: Path
) -> None:
    directory = tmp_path / "out"
    flags = ["--model", model_dir, "--pairs", pairs_file, *SMALL, "--output", directory]
    assert Command(*flags, "--steps", 3).result()[0] == 0
    before = {path: path.read_bytes() for path in (directory / "checkpoints").rglob("*.*")}
    sizes = [len(content) for content in before.values()]
    assert max(sizes) > LARGEST_FILE
    resume = [*flags, "--resume", "--steps", 6]
    status, _, error = Command(*resume, largest_file=LARGEST_FILE).result()
    assert status == 1
    assert error.count("\n") == 1 and "Traceback" not in error
    assert "the checkpoint of step 6 cannot be written" in error
    assert f"the last complete one is {directory / 'checkpoints' / 'step-3'}" in error
    assert Checkpoints(directory).steps() == [3]
    assert not list(directory.rglob(".saving.*"))
    assert all(path.read_bytes() == content for path, content in before.items())
    assert Command(*resume).result()[0] == 0  # with room again
    assert Checkpoints(directory).steps() == [3, 6]


def test_full_disk_before_the_first_checkpoint_leaves_nothing(
    tmp_path: Path, model_dir: Path, pairs_file: Path
) -> None:
    flags = ["--model", model_dir, "--pairs", pairs_file, *SMALL, "--output", tmp_path / "out"]
    status, _, error = Command(*flags, largest_file=LARGEST_FILE).result()
    assert status == 1
    assert "the checkpoint of step 3 cannot be written" in error and "none is there yet" in error
    assert not (tmp_path / "out").exists()


def test_loss_that_is_not_finite_names_step_pairs_and_checkpoint(
    align: Run, tmp_path: Path
) -> None:
    status, _, error = align("--learning-rate", "1e30", "--save-every", 1, "--lm-weight", 0)
    directory = tmp_path / "out"
    made = steps_made(directory)
    assert status == 1 and made >= 1
    assert f"step {made + 1} is not finite" in error
    last = directory / "checkpoints" / f"step-{made}"
    assert f"last good checkpoint: {last}" in error
    named = error.split("its pairs were ")[1].split(" (counted from 0)")[0]
    indices = [int(each) for each in named.split(", ")]
    assert len(set(indices)) == 8 and set(indices) <= set(range(20))
    model = AutoModelForCausalLM.from_pretrained(last)
    assert all(weight.isfinite().all() for weight in model.parameters())


def test_not_finite_before_the_first_checkpoint_says_none(align: Run, tmp_path: Path) -> None:
    status, _, error = align("--learning-rate", "1e30", "--lm-weight", 0)
    assert status == 1
    assert "last good checkpoint: none yet" in error
    assert not (tmp_path / "out").exists()


def test_killed_before_its_first_checkpoint_a_run_starts_again(align: Run, tmp_path: Path) -> None:
    assert align(output="straight")[0] == 0
    shutil.copytree(tmp_path / "straight", tmp_path / "out")
    shutil.rmtree(tmp_path / "out" / "checkpoints")
    assert align("--resume")[0] == 0
    assert metrics_of(tmp_path / "out") == metrics_of(tmp_path / "straight")


def test_adapters_and_learned_temperature_go_on(align: Run, tmp_path: Path) -> None:
    flags = ["--lora-rank", 2, "--learn-temperature", "--precision", "fp16"]
    assert align(*flags, "--save-every", 4, output="straight")[0] == 0
    directory = tmp_path / "out"
    assert align(*flags, "--save-every", 4)[0] == 0
    shutil.rmtree(directory / "checkpoints" / "step-6")
    assert align(*flags, "--resume")[0] == 0
    assert metrics_of(directory) == metrics_of(tmp_path / "straight")
    assert "temperature" in metrics_of(directory)[0]
    adapters = [load_file(tmp_path / n / "adapter_model.safetensors") for n in ("out", "straight")]
    assert all(torch.equal(adapters[0][name], adapters[1][name]) for name in adapters[0])
    model = AutoModelForCausalLM.from_pretrained(directory)  # finds the base model by its path
    assert any("lora_" in name for name, _ in model.named_parameters())


def test_state_of_another_kind_of_run_is_refused(align: Run, tmp_path: Path) -> None:
    assert align()[0] == 0
    path = tmp_path / "out" / "checkpoints" / "step-6" / STATE_FILE
    torch.save({**torch.load(path), "strategy": "fsdp2"}, path)
    write_manifest(path.parent)
    status, _, error = align("--resume", "--steps", 8)
    assert status == 1
    assert "the state of a run under fsdp2 cannot go on under single" in error


def test_interrupted_in_a_terminal_it_says_so_too(
    tmp_path: Path, model_dir: Path, pairs_file: Path
) -> None:
    directory = tmp_path / "out"
    command = long_run(directory, model_dir, pairs_file, until=2)
    command.send(signal.SIGINT)
    status, out, _ = command.result()
    assert status == 0 and "--resume goes on from there" in out
    assert json.loads((directory / "metrics.jsonl").read_text().splitlines()[-1])["step"] >= 2
