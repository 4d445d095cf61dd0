"""crossalign align --resume with files in other places: content counts, not paths."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from crossalign.models.loading import load_model
from tests.support.command_cases import Run, assert_one_line, metrics_of
from tests.support.evaluation_cases import write_xcopa
from tests.support.training import make_pairs


def write_pairs(path: Path, first: int) -> Path:
    pairs = make_pairs(first + 12)[first:]
    path.write_text("".join(f"{pair.source}\t{pair.target}\n" for pair in pairs))
    return path


@pytest.mark.parametrize("kind", ["evaluate-pairs", "lm-data"])
def test_a_file_may_move_but_not_change(align: Run, run: Run, tmp_path: Path, kind: str) -> None:
    path, flags = tmp_path / f"{kind}.tsv", []
    if kind == "lm-data":
        path = tmp_path / "items.jsonl"
        texts = (f"w{k} w{k + 1} = w{k + 40}" for k in range(3, 20))
        items = [{"sent0": t, "sent1": t, "clm_text": t, "clm_prompt_len": 4} for t in texts]
        path.write_text("".join(json.dumps(item) + "\n" for item in items))
    else:
        write_pairs(path, 20)
        flags = ["--evaluate-every", 2]
    assert align("--steps", 2, f"--{kind}", path, *flags)[0] == 0
    moved = tmp_path / "elsewhere" / path.name
    moved.parent.mkdir()
    shutil.move(path, moved)
    resume = ["align", "--resume", "--output", tmp_path / "out"]
    status, _, error = run(*resume, "--steps", 3)
    assert status == 1
    assert_one_line(error, f"{path}: cannot be read")
    status, _, error = run(*resume, "--steps", 3, f"--{kind}", moved)
    assert (status, error) == (0, "")
    moved.write_text(moved.read_text().replace("w4", "w5"))
    status, _, error = run(*resume, "--steps", 4)
    assert status == 1
    named = "texts for the next-token loss" if kind == "lm-data" else "evaluation data"
    assert_one_line(error, named, f"(--{kind}", "are not those that this run was trained on")
    assert [record["step"] for record in metrics_of(tmp_path / "out")] == [1, 2, 3]


def test_the_folder_of_evaluation_tasks_may_move_but_its_items_not_change(
    align: Run, run: Run, tmp_path: Path
) -> None:
    pytest.importorskip("lm_eval")
    write_xcopa(tmp_path / "tasks" / "xcopa", "it")
    flags = ["--evaluate-tasks", "xcopa", "--evaluate-languages", "it", "--evaluate-every", 2]
    flags += ["--evaluate-limit", 3, "--evaluate-data", tmp_path / "tasks", "--steps", 2]
    status, _, error = align(*flags)
    assert status == 0, error
    moved = shutil.move(tmp_path / "tasks", tmp_path / "moved")
    resume = ["align", "--resume", "--output", tmp_path / "out", "--evaluate-data", moved]
    status, _, error = run(*resume, "--steps", 3)
    assert (status, error) == (0, "")
    for path in (tmp_path / "moved").rglob("*test*"):
        path.write_text(path.read_text().replace("0", "1", 1))
    status, _, error = run(*resume, "--steps", 4)
    assert status == 1
    assert_one_line(error, "the evaluation data", "are not those that this run was trained on")


def test_the_languages_of_pairs_may_not_change_with_their_place(
    align: Run, run: Run, pairs_file: Path, tmp_path: Path
) -> None:
    """They are part of the prompts; of --pairs only paths may change."""
    assert align("--steps", 1, "--pairs", f"en-de:{pairs_file}")[0] == 0
    resume = ["align", "--resume", "--steps", 2, "--output", tmp_path / "out", "--pairs"]
    status, _, error = run(*resume, f"en-fr:{pairs_file}")
    assert status == 1
    assert_one_line(error, "the pairs (--pairs), or their languages, are not those")
    assert run(*resume, f"en-de:{pairs_file}")[0] == 0


@pytest.fixture
def base(tmp_path: Path, model_dir: Path) -> Path:
    return Path(shutil.copytree(model_dir, tmp_path / "base"))


def test_the_base_model_of_adapters_may_move_but_not_change(
    align: Run, run: Run, base: Path, tmp_path: Path
) -> None:
    assert align("--model", base, "--lora-rank", 2, "--steps", 2, output="straight")[0] == 0
    assert align("--model", base, "--lora-rank", 2, "--steps", 1)[0] == 0
    moved = shutil.move(base, tmp_path / "moved")
    resume = ["align", "--resume", "--steps", 2, "--output", tmp_path / "out"]
    status, _, error = run(*resume)
    assert status == 1
    assert_one_line(error, f"{base} is no directory", "name its place now by --model")
    other = Path(shutil.copytree(moved, tmp_path / "other"))
    weights = load_file(other / "model.safetensors")
    weights["transformer.wpe.weight"][0, 0] += 1
    save_file(weights, other / "model.safetensors", {"format": "pt"})
    status, _, error = run(*resume, "--model", other)
    assert status == 1
    assert_one_line(error, "the weights of the base model (--model) are not those")
    status, _, error = run(*resume, "--model", moved)
    assert (status, error) == (0, "")
    # A new number of steps is a new schedule: only the first step is that of a straight run.
    assert metrics_of(tmp_path / "out")[0]["loss"] == metrics_of(tmp_path / "straight")[0]["loss"]
    assert load_model(str(tmp_path / "out")) is not None  # the new place is in the adapters


def test_a_run_that_trains_the_weights_needs_no_model_to_go_on(
    align: Run, run: Run, base: Path, tmp_path: Path
) -> None:
    assert align("--model", base, "--steps", 1)[0] == 0
    moved = shutil.move(base, tmp_path / "moved")
    resume = ["align", "--resume", "--steps", 2, "--output", tmp_path / "out"]
    status, _, error = run(*resume, "--model", moved)
    assert status == 2
    assert_one_line(error, "leave --model away: the weights are those of the last checkpoint")
    assert run(*resume)[0] == 0


def test_adapters_without_their_base_model_are_named_by_every_command(
    align: Run, run: Run, base: Path, pairs_file: Path, tmp_path: Path
) -> None:
    assert align("--model", base, "--lora-rank", 2, "--steps", 1)[0] == 0
    shutil.rmtree(base)
    out = tmp_path / "out"
    write_xcopa(tmp_path / "tasks" / "xcopa", "it")
    commands: list[list[object]] = [
        ["analyze", "--pairs", pairs_file, "--output", tmp_path / "a"],
        ["evaluate", "--data", tmp_path / "tasks", "--tasks", "xcopa", "--languages", "it"],
        ["data", "check", "--pairs", pairs_file],
        ["align", "--pairs", pairs_file, "--output", tmp_path / "again"],
    ]
    commands[1] += ["--output", tmp_path / "r.json"]
    for command in commands:
        status, _, error = run(*command, "--model", out)
        assert status == 1, command
        assert_one_line(error, f"holds adapters of the model {base}, which is not there; put it")
    (out / "adapter_config.json").write_text('{"base_model')
    status, _, error = run(*commands[0], "--model", out)
    assert status == 1
    assert_one_line(error, "adapter_config.json: damaged: does not name the model")


@pytest.mark.parametrize("local_rank", ["0", "1"])
def test_one_rank_a_machine_reads_the_base_model_for_its_hash(
    align: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, local_rank: str
) -> None:
    """Each rank hashed all of it."""
    monkeypatch.setenv("LOCAL_RANK", local_rank)
    assert align("--lora-rank", 2, "--steps", 1)[0] == 0
    content = json.loads((tmp_path / "out" / "checkpoints" / "step-1" / "content.json").read_text())
    assert ("model" in content) == (local_rank == "0")
