"""Damaged files of a run: named in one line, and the run goes on from what is whole."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from crossalign.alignment.checkpoint import Checkpoints
from crossalign.alignment.content import CONTENT_FILE
from crossalign.alignment.finite import NotFiniteError
from crossalign.alignment.train import AlignmentRun
from crossalign.files.manifest import MANIFEST_FILE, write_manifest
from crossalign.files.text import DataError
from tests.support.command_cases import Run, assert_one_line, metrics_of
from tests.support.tiny_models import tiny_model, tiny_tokenizer
from tests.support.training import load_last, make_config, make_pairs


def flip_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGES: dict[str, Callable[[Path], object]] = {
    "cut": cut,
    "emptied": lambda path: path.write_bytes(b""),
    "one bit": flip_bit,
    "gone": lambda path: path.unlink(),
}


def new_run() -> AlignmentRun:
    return AlignmentRun(tiny_model("gpt2"), tiny_tokenizer(), make_pairs(9), make_config())


@pytest.fixture(scope="module")
def two_checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("run")
    (directory / "config.yaml").write_text("steps: 3\n")
    run = new_run()
    Checkpoints(directory).save(run)
    run.step = 2
    Checkpoints(directory).save(run)
    return directory


FILES = ["config.json", "config.yaml", "content.json", "generation_config.json", "manifest.json"]
FILES += ["model.safetensors", "tokenizer.json", "tokenizer_config.json", "training_state.pt"]


def test_a_full_disk_at_any_write_harms_nothing(two_checkpoints: Path, tmp_path: Path) -> None:
    """A limit on the size of files makes each of them in turn the one that does not fit."""
    shutil.copytree(two_checkpoints, tmp_path / "run")
    checkpoints, run = Checkpoints(tmp_path / "run"), new_run()
    sizes = {path.name: path.stat().st_size for path in checkpoints.path(2).iterdir()}
    run.step = 3
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for name in FILES:
        resource.setrlimit(resource.RLIMIT_FSIZE, (sizes[name] - 1, hard))
        try:
            with pytest.raises(OSError, match="the checkpoint of step 3 cannot be written: ") as no:
                checkpoints.save(run)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        # What is written before it may be as large. Other writers do not say which file it was.
        named = [*FILES, "the files of the model", "the files of the tokenizer"]
        assert any(f"cannot be written: {each}: " in str(no.value) for each in named)
        assert f"{checkpoints.path(2)}; make room" in str(no.value)
        assert checkpoints.steps() == [0, 2] and not list(tmp_path.rglob(".saving.*"))
        assert Checkpoints(tmp_path / "run").last() == 2
    checkpoints.save(run)
    assert Checkpoints(tmp_path / "run").last() == 3


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", FILES)
def test_any_damage_to_any_file_falls_back_to_the_checkpoint_before(
    two_checkpoints: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    name: str,
    damage: str,
) -> None:
    shutil.copytree(two_checkpoints, tmp_path / "run")
    checkpoints = Checkpoints(tmp_path / "run")
    assert sorted(path.name for path in checkpoints.path(2).iterdir()) == FILES
    DAMAGES[damage](checkpoints.path(2) / name)
    assert checkpoints.last() == 0
    (record,) = caplog.records
    assert str(checkpoints.path(2)) in record.message
    assert record.message.endswith("; the run goes on from step 0")
    if name != "manifest.json":
        assert record.message.startswith(f"{checkpoints.path(2) / name}: ")
    assert (tmp_path / "run" / "checkpoints" / "damaged-step-2").is_dir()
    DAMAGES[damage](checkpoints.path(0) / name)
    with pytest.raises(DataError, match="no earlier checkpoint is left, so start a new run"):
        Checkpoints(tmp_path / "run").last()
    assert checkpoints.path(0).is_dir()  # nothing that could be mended is taken away


@pytest.mark.parametrize("has_manifest", [False, True])
def test_a_checkpoint_of_an_earlier_version_is_refused_and_left_as_it_is(
    two_checkpoints: Path, tmp_path: Path, has_manifest: bool
) -> None:
    """It was taken for a damaged one, and renamed."""
    shutil.copytree(two_checkpoints, tmp_path / "run")
    checkpoints = Checkpoints(tmp_path / "run")
    for path in map(checkpoints.path, checkpoints.steps()):
        for name in (CONTENT_FILE, MANIFEST_FILE):
            (path / name).unlink()
        if has_manifest:
            write_manifest(path)
    with pytest.raises(DataError, match=f"{checkpoints.path(2)}: is a checkpoint of an earlier"):
        checkpoints.last()
    assert checkpoints.steps() == [0, 2]


def test_a_run_with_a_damaged_checkpoint_ends_as_if_it_had_not_been(
    align: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A flipped bit in the weights was once trained on without a word."""
    directory = tmp_path / "out"
    assert align("--save-every", 2)[0] == 0
    straight, records = load_file(directory / "model.safetensors"), metrics_of(directory)
    damaged = directory / "checkpoints" / "step-6" / "model.safetensors"
    shutil.copy(damaged, tmp_path / "copy")  # of a file that is linked to
    damaged.unlink()
    shutil.copy(tmp_path / "copy", damaged)
    flip_bit(damaged)
    assert align("--save-every", 2, "--resume")[0] == 0
    (record,) = caplog.records
    assert record.message == (
        f"{damaged}: damaged: not what was written, by SHA-256; the run goes on from step 4"
    )
    assert metrics_of(directory) == records
    resumed = load_file(directory / "model.safetensors")
    assert all(torch.equal(resumed[name], straight[name]) for name in straight)
    assert Checkpoints(directory).steps() == [4, 6] and Checkpoints(directory).last() == 6


def test_a_damaged_best_checkpoint_is_not_published(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run, checkpoints = new_run(), Checkpoints(tmp_path)
    for run.step in (1, 2, 3):
        checkpoints.save(run)
    scores = {1: 0.5, 2: 0.7, 3: 0.5}
    assert checkpoints.best(scores) == 2
    cut(checkpoints.path(2) / "model.safetensors")
    assert Checkpoints(tmp_path).best(scores) == 1
    assert "it was the best by --best-metric" in caplog.text


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(tmp_path: Path, value: float) -> None:
    run, checkpoints = new_run(), Checkpoints(tmp_path)
    checkpoints.save(run)
    with torch.no_grad():
        run.language_model.transformer.h[1].mlp.c_fc.weight[2, :3] = value
    run.step = 1
    named = r"transformer.h.1.mlp.c_fc.weight of the model must be finite, but 3 of its 4096"
    with pytest.raises(NotFiniteError, match=f"step 1 is not saved: .*{named}.*/step-0$"):
        checkpoints.save(run)
    assert checkpoints.steps() == [0] and not list(tmp_path.rglob(".saving.*"))
    with pytest.raises(NotFiniteError, match=named):
        AlignmentRun(run.language_model, tiny_tokenizer(), make_pairs(9), make_config())
    load_last(tmp_path, new_run())


def test_cleaning_up_takes_the_place_of_no_error(align: Run, tmp_path: Path) -> None:
    """With the scheduler's log in --output the error was "[Errno 39] Directory not empty"."""
    log = tmp_path / "out" / "slurm.log"

    def scheduler(self: AlignmentRun, *, progress: bool) -> None:
        log.touch()
        raise NotFiniteError("step 2 is not finite")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AlignmentRun, "steps", scheduler)
        status, _, error = align()
    assert status == 1
    assert_one_line(error, "step 2 is not finite")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["slurm.log"]


def test_a_second_start_is_told_who_is_there(
    align: Run,
    model_dir: Path,
    pairs_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """From before the model is loaded on."""
    seen: list[Any] = []
    init = AlignmentRun.__init__

    def second_start(self: AlignmentRun, *arguments: object, **named: object) -> None:
        monkeypatch.setattr(AlignmentRun, "__init__", init)
        command = [sys.executable, "-m", "crossalign", *map(str, flags), "--output", "out"]
        seen.append(subprocess.run(command, cwd=tmp_path, capture_output=True, text=True))
        init(self, *arguments, **named)  # type: ignore[arg-type]

    flags = ["align", "--model", model_dir, "--pairs", pairs_file]
    monkeypatch.setattr(AlignmentRun, "__init__", second_start)
    assert align()[0] == 0
    (second,) = seen
    assert second.returncode == 1
    assert_one_line(second.stderr, f"in use by process {os.getpid()}; wait for it, or stop it")
    assert not (tmp_path / "out" / ".lock").exists()
    assert [record["step"] for record in metrics_of(tmp_path / "out")] == [1, 2, 3, 4, 5, 6]


def test_sigterm_while_loading_leaves_nothing(
    align: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))

    def terminated(self: AlignmentRun, *_: object, **__: object) -> None:
        assert list((tmp_path / "tmp").iterdir())  # the data's index
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(AlignmentRun, "__init__", terminated)
    before = signal.getsignal(signal.SIGTERM)
    status, _, error = align()
    assert status == 128 + signal.SIGTERM
    assert_one_line(error, "stopped by SIGTERM")
    assert not list((tmp_path / "tmp").iterdir()) and not (tmp_path / "out").exists()
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_full_temporary_folder_names_itself_and_the_way_out(
    align: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("crossalign.files.indexed_lines._write_index", full)
    status, _, error = align("--cache", tmp_path / "cache")
    assert status == 1
    assert_one_line(error, f"{tmp_path / 'cache'}: No space left on device; set TMPDIR or --cache")
    assert not (tmp_path / "out").exists()


def test_a_tracker_that_cannot_close_is_said(
    align: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tracking = pytest.importorskip("accelerate.tracking")
    pytest.importorskip("tensorboard")

    def broken(self: object) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr(tracking.TensorBoardTracker, "finish", broken)
    assert align("--trackers", "tensorboard")[0] == 0
    assert "tensorboard could not be closed: no network" in caplog.text
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] == "gpt2"
