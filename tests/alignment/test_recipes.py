"""Every recipe is one that `crossalign align --config` reads, and trains with."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import AutoModelForCausalLM

from crossalign.alignment.config import TrainingConfig
from crossalign.alignment.run_config import RunConfig
from tests.support.command_cases import Run, metrics_of
from tests.support.tiny_models import tiny_model, tiny_tokenizer
from tests.support.training import make_pairs

FOLDER = Path(__file__).parents[2] / "crossalign" / "recipes"
RECIPES = sorted(FOLDER.glob("*.yaml"))
FAMILIES = {"xglm-564m": "xglm", "bloom-560m": "bloom", "llama-7b": "llama"}
# What the paper and its code state.
PAPER = {
    **{"layer": 1, "pooling": "mean", "temperature": 0.05, "contrastive_weight": 1.0},
    **{"lm_weight": 1.5, "learning_rate": 1e-5, "precision": "bf16", "max_length": 512},
    **{"evaluate_every": 500, "best_metric": "task_accuracy"},
}


@pytest.mark.usefixtures("attention_in_bfloat16")
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_trains(run: Run, path: Path, tmp_path: Path, data_root: Path) -> None:
    """One step of a tiny model of the family, and its evaluation; nothing else is changed."""
    family = FAMILIES.get(path.stem, "llama")
    tiny_model(family).save_pretrained(tmp_path / "model")
    tiny_tokenizer(pad_token="w0").save_pretrained(tmp_path / "model")
    pairs = tmp_path / "pairs.tsv"
    pairs.write_text("".join(f"{pair.source}\t{pair.target}\n" for pair in make_pairs(20)))
    flags = ["--config", path, "--model", tmp_path / "model", "--pairs", pairs]
    if "evaluate_tasks" in yaml.safe_load(path.read_text()):
        pytest.importorskip("lm_eval")
        flags += ["--evaluate-tasks", "xcopa", "--evaluate-languages", "zh"]
        flags += ["--evaluate-data", data_root / "eval", "--evaluate-limit", 2]
    output = tmp_path / "out"
    status, _, error = run("align", *flags, "--output", output, "--steps", 1, "--device", "cpu")
    assert status == 0, error
    settings = yaml.safe_load((output / "config.yaml").read_text())
    recipe = yaml.safe_load(path.read_text())
    changed = {"model", "steps", "evaluate_tasks", "evaluate_languages", "evaluate_data"}
    for name in recipe.keys() - changed:
        assert settings[name] == recipe[name], name


@pytest.mark.parametrize("name", FAMILIES)
def test_recipe_of_the_paper_has_its_hyper_parameters(name: str) -> None:
    recipe = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    defaults: dict[str, Any] = {
        each.name: each.default
        for settings in (TrainingConfig, RunConfig)
        for each in dataclasses.fields(settings)
    }
    used = {**defaults, **recipe}
    assert {key: used[key] for key in PAPER} == PAPER
    assert 5000 <= recipe["steps"] <= 10_000


def launch(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """`accelerate launch` with one of its files, for two processes."""
    command: list[Any] = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--num_processes",
        "2",
    ]
    command += ["--config_file", FOLDER / "accelerate" / f"{name}.yaml", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    options: dict[str, Any] = {"capture_output": True, "text": True, "timeout": 180}
    return subprocess.run(list(map(str, command)), env=environment, **options)


LAUNCHED = {
    "fsdp2": "fsdp2 none",
    "deepspeed-zero2": "deepspeed 2 none none",
    "deepspeed-zero3-offload": "deepspeed 3 cpu cpu",
}


def test_every_launcher_file_is_tested() -> None:
    assert {path.stem for path in (FOLDER / "accelerate").iterdir()} == LAUNCHED.keys()


@pytest.mark.parametrize("name", LAUNCHED)
def test_launcher_file_asks_for_its_strategy(tmp_path: Path, name: str) -> None:
    """`accelerate launch` reads it, and gives its processes what the engine looks for."""
    if "deepspeed" in name:
        pytest.importorskip("deepspeed", reason="deepspeed is not installed")
    script = tmp_path / "show.py"
    script.write_text(
        "from crossalign.alignment.engines.deepspeed_settings import deepspeed_settings\n"
        "from crossalign.alignment.engines.launch import launched_strategy\n"
        "from crossalign.alignment.config import TrainingConfig\n"
        "shown = ['none']\n"
        "if launched_strategy() == 'deepspeed':\n"
        "    zero = deepspeed_settings(TrainingConfig())['zero_optimization']\n"
        "    parts = (zero['offload_optimizer'], zero['offload_param'])\n"
        "    shown = [str(zero['stage']), *(part['device'] for part in parts)]\n"
        "print(' '.join([launched_strategy(), *shown]) + '\\n', end='')\n"
    )
    done = launch(name, script)
    assert done.stdout.splitlines() == [LAUNCHED[name]] * 2, done.stderr


@pytest.mark.slow
def test_launcher_file_trains_with_what_it_offloads(run: Run, tmp_path: Path) -> None:
    """From the command line, with a checkpoint: the losses are those of one process."""
    pytest.importorskip("deepspeed", reason="deepspeed is not installed")
    tiny_model("llama").save_pretrained(tmp_path / "model")
    tiny_tokenizer(pad_token="w0").save_pretrained(tmp_path / "model")
    pairs = tmp_path / "pairs.tsv"
    pairs.write_text("".join(f"{pair.source}\t{pair.target}\n" for pair in make_pairs(20)))
    flags = ["--model", tmp_path / "model", "--pairs", pairs, "--batch-size", 6, "--device", "cpu"]
    flags += ["--steps", 2, "--chunk-size", 2, "--output"]
    module = ("-m", "crossalign", "align", *flags, tmp_path / "two")
    done = launch("deepspeed-zero3-offload", *module)
    assert done.returncode == 0, done.stderr
    assert run("align", *flags, tmp_path / "one")[0] == 0
    two, one = (metrics_of(tmp_path / name) for name in ("two", "one"))
    assert [each["loss"] for each in two] == pytest.approx([each["loss"] for each in one], rel=1e-5)
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "two") is not None
