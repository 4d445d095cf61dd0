"""What a run leaves: which checkpoints, which model, evaluations, reports."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from crossalign.alignment import periodic_evaluation
from crossalign.alignment.checkpoint import Checkpoints
from crossalign.alignment.run_config import RunConfig
from crossalign.alignment.train import AlignmentRun
from crossalign.evaluation.vectors.retrieval import retrieval_scores
from crossalign.models.encode import encode
from tests.support.command_cases import Run, assert_one_line
from tests.support.tiny_models import tiny_model, tiny_tokenizer
from tests.support.training import make_pairs


@pytest.fixture
def held_out(tmp_path: Path) -> Path:
    path = tmp_path / "held_out.tsv"
    pairs = make_pairs(36)[20:]
    path.write_text("".join(f"{pair.source}\t{pair.target}\n" for pair in pairs))
    return path


def evaluations_of(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "evaluations.jsonl").read_text().splitlines()]


def weights_of(directory: Path) -> dict[str, torch.Tensor]:
    return AutoModelForCausalLM.from_pretrained(directory).state_dict()


def assert_same_weights(one: Path, other: Path) -> None:
    first, second = weights_of(one), weights_of(other)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(("flags", "kept"), [([], [5, 6]), (["--keep-last", 4], [3, 4, 5, 6])])
def test_the_newest_checkpoints_are_kept(
    align: Run, tmp_path: Path, flags: list[object], kept: list[int]
) -> None:
    assert align("--save-every", 1, *flags)[0] == 0
    directory = tmp_path / "out"
    assert Checkpoints(directory).steps() == kept
    assert_same_weights(directory, directory / "checkpoints" / "step-6")
    assert not list(directory.rglob(".saving.*"))


def test_evaluation_is_written_and_changes_no_step(
    align: Run, tmp_path: Path, held_out: Path
) -> None:
    """The score is that of the held-out pairs after that step, before the first one too."""
    flags = ["--evaluate-pairs", held_out, "--evaluate-every", 4, "--save-every", 4]
    assert align(output="plain")[0] == 0
    assert align(*flags)[0] == 0
    directory = tmp_path / "out"
    assert_same_weights(directory, tmp_path / "plain")
    evaluations = evaluations_of(directory)
    assert [each["step"] for each in evaluations] == [0, 4, 6]
    pairs = make_pairs(36)[20:]
    for step, record in zip((4, 6), evaluations[1:], strict=True):
        model = AutoModelForCausalLM.from_pretrained(Checkpoints(directory).path(step))
        source, target = (
            encode(model, tiny_tokenizer(), [pair[side] for pair in pairs]) for side in (0, 1)
        )
        assert record["retrieval_accuracy"] == retrieval_scores(source, target).accuracy


def test_best_checkpoint_is_kept_and_is_the_model_of_the_directory(
    align: Run, tmp_path: Path, held_out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of equal scores the first; the newest one stays to go on from, also after a restart."""
    scores = {0: 0.9, 1: 0.3, 2: 0.5, 3: 0.5, 4: 0.1, 5: 0.2, 6: 0.4, 7: 0.6}
    monkeypatch.setattr(
        periodic_evaluation.PeriodicEvaluation,
        "_retrieval",
        lambda self, run: {"retrieval_accuracy": scores[run.step]},
    )
    flags = ["--evaluate-pairs", held_out, "--evaluate-every", 1, "--keep-last", 1]
    flags += ["--best-metric", "retrieval_accuracy"]
    directory = tmp_path / "out"
    assert align(*flags)[0] == 0
    assert Checkpoints(directory).steps() == [2, 6]
    assert_same_weights(directory, directory / "checkpoints" / "step-2")
    assert align(*flags, "--resume", "--steps", 7)[0] == 0
    assert Checkpoints(directory).steps() == [7]
    assert_same_weights(directory, directory / "checkpoints" / "step-7")


def test_tasks_are_scored_on_the_live_model(
    align: Run, tmp_path: Path, data_root: Path, model_dir: Path
) -> None:
    pytest.importorskip("lm_eval")
    flags: list[object] = [
        "--evaluate-tasks",
        "xcopa",
        "--evaluate-languages",
        "it",
        "--evaluate-data",
    ]
    flags += [data_root / "eval", "--evaluate-limit", 3, "--evaluate-every", 6]
    status, _, error = align(*flags, "--best-metric", "task_accuracy")
    assert status == 0, error
    records = evaluations_of(tmp_path / "out")
    assert [each["step"] for each in records] == [0, 6]
    assert all(
        each["xcopa_it"] == each["task_accuracy"] in (0, 1 / 3, 2 / 3, 1) for each in records
    )


def test_tensorboard_gets_losses_speed_memory_and_scores(
    align: Run, tmp_path: Path, held_out: Path
) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    flags = ["--trackers", "tensorboard", "--evaluate-pairs", held_out, "--evaluate-every", 3]
    assert align(*flags, "--pretraining-tokens", "1e6")[0] == 0
    events = accumulator.EventAccumulator(str(tmp_path / "out" / "trackers" / "crossalign"))
    events.Reload()
    metrics = (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()
    for name in ("contrastive_loss", "lm_loss", "accuracy", "pretraining_share"):
        shown = {each.step: each.value for each in events.Scalars(name)}
        written = {json.loads(line)["step"]: json.loads(line)[name] for line in metrics}
        assert shown == pytest.approx(written, rel=1e-6)
    assert events.Scalars("pairs_per_second")[0].value > 0
    assert events.Scalars("tokens_per_second")[0].value > 0
    assert events.Scalars("memory_gib")[0].value > 0.01
    assert [each.step for each in events.Scalars("retrieval_accuracy")] == [0, 3, 6]


def test_failure_to_evaluate_leaves_no_half_run(align: Run, tmp_path: Path) -> None:
    status, _, error = align("--evaluate-pairs", tmp_path / "none", "--evaluate-every", 1)
    assert status == 1
    assert_one_line(error, "none: cannot be read")
    assert not (tmp_path / "out").exists()


def test_several_layers_stand_in_the_settings(align: Run, run: Run, tmp_path: Path) -> None:
    assert align("--layer", 1, -1, "--steps", 2)[0] == 0
    directory = tmp_path / "out"
    assert yaml.safe_load((directory / "config.yaml").read_text())["layer"] == [1, -1]
    assert run("align", "--resume", "--output", directory, "--steps", 3)[0] == 0
    again = ["--config", directory / "config.yaml", "--output", tmp_path / "again"]
    assert run("align", *again)[0] == 0
    status, _, error = align("--layer", 1, 9, output="bad")
    assert status == 2
    assert_one_line(error, "layer must lie between -4 and 3")


def test_save_of_the_same_step_replaces_it(tmp_path: Path) -> None:
    """A run that resumed from an earlier step comes by the later ones again."""
    from tests.support.training import make_config

    run = AlignmentRun(tiny_model("gpt2"), tiny_tokenizer(), make_pairs(9), make_config())
    Checkpoints(tmp_path).save(run)
    stray = Checkpoints(tmp_path).path(0) / "stray"
    stray.write_text("")
    Checkpoints(tmp_path).save(run)
    assert Checkpoints(tmp_path).steps() == [0] and not stray.exists()
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-0"]


def test_files_are_copied_where_links_are_not_to_be_had(
    align: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_link(*_: object) -> None:
        raise OSError("not permitted")

    monkeypatch.setattr(os, "link", no_link)
    assert align()[0] == 0
    assert_same_weights(tmp_path / "out", tmp_path / "out" / "checkpoints" / "step-6")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"save_every": 0}, "save_every must be at least 1, got 0"),
        ({"keep_last": 0}, "keep_last must be at least 1, got 0"),
        ({"evaluate_every": 5}, "evaluate_every and one of evaluate_pairs and evaluate_tasks need"),
        ({"evaluate_pairs": ("a",)}, "need each other"),
        (
            {"evaluate_tasks": ("xnli",), "evaluate_every": 1},
            "evaluate_tasks needs evaluate_languages and evaluate_data",
        ),
        ({"trackers": ("tensorbored",)}, "trackers must be one of tensorboard, wandb, got 'tens"),
        ({"best_metric": "loss"}, "best_metric must be one of retrieval_accuracy, task_accuracy"),
        (
            {"best_metric": "task_accuracy", "evaluate_pairs": ("a",), "evaluate_every": 1},
            "best_metric task_accuracy needs evaluate_tasks",
        ),
    ],
)
def test_wrong_run_settings_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RunConfig(**settings)


def test_wrong_types_of_run_settings_are_named() -> None:
    with pytest.raises(TypeError, match="trackers must be a tuple, got 'wandb'"):
        RunConfig(trackers="wandb")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="save_every must be one value, got"):
        RunConfig(save_every=(1,))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="evaluate_pairs must be str, got 1"):
        RunConfig(evaluate_pairs=(1,))  # type: ignore[arg-type]
