"""Reports of users of other projects about runs: resuming, damage, full disks, late failures."""

from __future__ import annotations

import errno
import io
from pathlib import Path
from typing import Any

import pytest
import torch

from crossalign.alignment.checkpoint import Checkpoints
from crossalign.alignment.finite import NotFiniteError
from crossalign.alignment.train import AlignmentRun
from tests.support.command_cases import Run, assert_one_line, metrics_of
from tests.support.evaluation_cases import write_xcopa
from tests.support.tiny_models import tiny_model, tiny_tokenizer
from tests.support.training import DROPOUT, make_config, make_pairs, without_seconds

PAIRS, STEPS, STOP = 40, 14, 12  # a batch holds 4: step 12 lies in the second pass


def start() -> AlignmentRun:
    model = tiny_model("gpt2", **DROPOUT)
    config = make_config(batch_size=4, steps=STEPS, learn_temperature=True)
    return AlignmentRun(model, tiny_tokenizer(), make_pairs(PAIRS), config)


@pytest.fixture(scope="module")
def unbroken_and_resumed() -> tuple[Any, Any, AlignmentRun]:
    unbroken = without_seconds(list(start().steps(progress=False)))
    first = start()
    steps = first.steps(progress=False)
    for _ in range(STOP):
        next(steps)
    stored = io.BytesIO()
    torch.save(first.state(), stored)
    stored.seek(0)
    second = start()
    second.load_state(torch.load(stored, weights_only=True))
    return unbroken, without_seconds(list(second.steps(progress=False))), second


def test_a_resumed_run_has_the_losses_of_an_unbroken_one(unbroken_and_resumed: Any) -> None:
    """Kind: a loss that jumps after resuming. Source: sentence-transformers#3756."""
    unbroken, resumed, _ = unbroken_and_resumed
    assert resumed == unbroken[STOP:]


def test_batches_of_the_second_pass_are_those_of_an_unbroken_run(unbroken_and_resumed: Any) -> None:
    """Kind: the order of data after resuming. Source: accelerate#2016."""
    _, _, run = unbroken_and_resumed
    fresh = start()
    taken = [fresh.pair_indices(step) for step in range(20)]
    assert [run.pair_indices(step) for step in range(20)] == taken
    for first in (0, 10):  # each pass has each pair once
        one_pass = [index for batch in taken[first : first + 10] for index in batch]
        assert sorted(one_pass) == list(range(PAIRS))


def test_resuming_with_another_batch_size_is_refused_by_name(align: Run) -> None:
    """Kind: settings that change on resuming. Source: transformers#43718."""
    assert align("--steps", 1)[0] == 0
    status, _, error = align("--steps", 2, "--resume", "--batch-size", 4)
    assert status == 2
    assert_one_line(error, "batch_size is 4, but the run to resume has 8")
    assert align("--steps", 2, "--resume", "--chunk-size", 4)[0] == 0


def test_a_damaged_checkpoint_is_named_and_the_one_before_taken(
    align: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Kind: damaged checkpoints. Source: speculators#739, SpecForge#659, SimpleTuner#2613."""
    assert align("--steps", 2, "--save-every", 1)[0] == 0
    weights = tmp_path / "out" / "checkpoints" / "step-2" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    status, _, error = align("--steps", 3, "--save-every", 1, "--resume")
    assert status == 0, error
    assert f"{weights}: damaged" in caplog.text and "goes on from step 1" in caplog.text
    assert [record["step"] for record in metrics_of(tmp_path / "out")] == [1, 2, 3]


def test_a_full_disk_names_the_last_checkpoint(
    align: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kind: checkpoints that cannot be written. Source: metaseq#53."""
    save, calls = torch.save, []

    def full(*given: Any, **options: Any) -> None:
        calls.append(given)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        save(*given, **options)

    monkeypatch.setattr(torch, "save", full)
    status, _, error = align("--steps", 2, "--save-every", 1)
    assert status == 1
    folder = tmp_path / "out" / "checkpoints"
    assert_one_line(error, "No space left on device", str(folder / "step-1"))
    assert Checkpoints(tmp_path / "out").steps() == [1]
    monkeypatch.undo()
    assert align("--steps", 2, "--save-every", 1, "--resume")[0] == 0


@pytest.mark.parametrize("late", ["missing folder", "below a file", "read-only", "--compare"])
def test_what_stops_an_evaluation_at_its_end_is_told_before_a_weight_is_loaded(
    run: Run, tmp_path: Path, model_dir: Path, monkeypatch: pytest.MonkeyPatch, late: str
) -> None:
    """Kind: errors that come after hours. Source: litgpt#942, lm-evaluation-harness#2140,
    mteb#4655."""
    pytest.importorskip("lm_eval")

    def loaded(*_: object, **__: object) -> None:
        raise AssertionError("a model was loaded first")

    monkeypatch.setattr("crossalign.models.loading.load_model", loaded)
    write_xcopa(tmp_path / "xcopa", "it")
    (tmp_path / "file").touch()
    output = {
        "missing folder": tmp_path / "missing" / "r.json",
        "below a file": tmp_path / "file" / "r.json",
    }.get(late, tmp_path / "r.json")
    command = ["evaluate", "--model", model_dir, "--data", tmp_path, "--tasks", "xcopa"]
    command += ["--languages", "it", "--output", output]
    told = {"read-only": "may not be written to", "--compare": "/no/such/model is no directory"}
    if late == "read-only":  # also for a root user, to whom nothing is read-only
        monkeypatch.setattr("crossalign.files.output.os.access", lambda *_: False)
    if late == "--compare":
        command += ["--compare", "/no/such/model"]
    status, _, error = run(*command)
    assert status == (1 if late in told else 2)
    assert_one_line(error, told.get(late, f"{output} must be a file in an existing folder"))


def test_cleaning_up_does_not_hide_the_error(
    align: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kind: cleaning up that raises. Source: tensorpack#644, nipype#2605."""

    def scheduler(self: AlignmentRun, *, progress: bool) -> None:
        (tmp_path / "out" / ".nfs0001").touch()
        raise NotFiniteError("step 1 is not finite")

    monkeypatch.setattr(AlignmentRun, "steps", scheduler)
    status, _, error = align()
    assert status == 1
    assert_one_line(error, "step 1 is not finite")
