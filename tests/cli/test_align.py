"""crossalign align: what it writes, its settings, its errors in one line."""

from __future__ import annotations

import gzip
import json
import re
import sys
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

import crossalign
from crossalign.alignment import checkpoint
from crossalign.alignment.train import AlignmentRun
from tests.support.command_cases import Run, assert_one_line, metrics_of
from tests.support.training import make_pairs


@pytest.mark.parametrize("lm_data", [False, True])
def test_align_leaves_model_metrics_and_settings(
    align: Run, run: Run, tmp_path: Path, pairs_file: Path, model_dir: Path, lm_data: bool
) -> None:
    flags: list[object] = []
    if lm_data:
        items = tmp_path / "items.jsonl"
        build = ["--mode", "translation", "--languages", "en", "de", "--input", pairs_file]
        assert run("data", "build", *build, "--output", items)[0] == 0
        flags = ["--lm-data", items]
    status, out, error = align(*flags)
    assert (status, error) == (0, "")
    assert "6 steps on 20 pairs" in out
    directory = tmp_path / "out"
    assert AutoTokenizer.from_pretrained(directory)("w3 w4")["input_ids"] == [3, 4]
    trained = AutoModelForCausalLM.from_pretrained(directory).state_dict()
    before = AutoModelForCausalLM.from_pretrained(model_dir).state_dict()
    assert not torch.equal(trained["transformer.wte.weight"], before["transformer.wte.weight"])
    assert (directory / "model.safetensors").is_file()
    records = metrics_of(directory)
    assert [record["step"] for record in records] == [1, 2, 3, 4, 5, 6]
    assert records[0].keys() == {
        *("step", "loss", "contrastive_loss", "lm_loss", "accuracy"),
        *("learning_rate", "pairs", "tokens"),
    }
    settings = yaml.safe_load((directory / "config.yaml").read_text())
    assert settings["learning_rate"] == 1e-3
    assert settings["pairs"] == [str(pairs_file)]
    assert settings["lm_data"] == (str(items) if lm_data else None)
    environment = json.loads((directory / "environment.json").read_text())
    assert environment["version"] == crossalign.__version__
    hidden = [path.name for path in directory.iterdir() if path.name.startswith(".")]
    assert not hidden


def test_align_reads_parallel_files_and_their_languages(
    align: Run, model_dir: Path, tmp_path: Path
) -> None:
    sides = [tmp_path / "p.en.gz", tmp_path / "p.de.gz"]
    for index, side in enumerate(sides):
        side.write_bytes(gzip.compress("".join(f"{p[index]}\n" for p in make_pairs(9)).encode()))
    status, _, error = align("--pairs", *sides, "--languages", "en", "de", "--steps", 1)
    assert (status, error) == (0, "")
    settings = yaml.safe_load((tmp_path / "out" / "config.yaml").read_text())
    assert settings["languages"] == ["en", "de"]


def test_settings_file_is_overridden_by_flags(
    run: Run, model_dir: Path, pairs_file: Path, tmp_path: Path
) -> None:
    config = tmp_path / "settings.yaml"
    config.write_text(
        f"model: {model_dir}\npairs: {pairs_file}\nlearning-rate: 1e-3\nbatch_size: 4\n"
        "steps: 5\nsymmetric: true\nlayer: -1\nlanguages: [en, de]\nchunk_size: null\n"
    )
    output = tmp_path / "out"
    status, _, error = run("align", "--config", config, "--output", output, "--steps", 1)
    assert (status, error) == (0, "")
    settings = yaml.safe_load((output / "config.yaml").read_text())
    expected = {"learning_rate": 1e-3, "batch_size": 4, "steps": 1, "symmetric": True, "layer": -1}
    assert expected.items() <= settings.items()
    # What a run wrote is a settings file too, and one --no-flag takes a true back.
    again = tmp_path / "again"
    flags = ["--config", output / "config.yaml", "--output", again, "--no-symmetric"]
    assert run("align", *flags)[0] == 0
    assert yaml.safe_load((again / "config.yaml").read_text()) == {**settings, "symmetric": False}


@pytest.mark.parametrize(
    ("content", "status", "message"),
    [
        (
            "stepz: 3\nlayers: 2\n",
            2,
            "unknown in the configuration file: layers, stepz; known: model",
        ),
        ("resume: true\n", 2, "unknown in the configuration file: resume"),
        ("steps: many\n", 2, "argument --steps: invalid int value: 'many'"),
        ("steps: 1.5\n", 2, "argument --steps: invalid int value: '1.5'"),
        ("pooling: first\n", 2, "argument --pooling: invalid choice: 'first'"),
        ("steps: 0\n", 2, "--steps must be at least 1, got 0"),
        ("- steps\n", 1, "must map settings to values, got list"),
        ("steps: [1\n", 1, "not valid YAML"),
        (None, 1, "cannot be read: No such file"),
    ],
)
def test_bad_settings_file_is_an_error(
    run: Run, tmp_path: Path, content: str | None, status: int, message: str
) -> None:
    config = tmp_path / "settings.yaml"
    if content is not None:
        config.write_text(content)
    required = ["--model", "m", "--pairs", "p", "--output", tmp_path / "out"]
    got, _, error = run("align", *required, "--config", config)
    assert got == status
    assert_one_line(error, message)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--batch-size", "1"], "--batch-size must be at least 2, got 1"),
        (["--temperature", "0"], "--temperature must be above 0"),
        (["--learning-rate", "fast"], "argument --learning-rate: invalid float value: 'fast'"),
        (["--pooling", "first"], "invalid choice: 'first'"),
        (["--layer", "9"], "layer must lie between -4 and 3"),
        (["--device", "abacus"], "device must be auto, cpu"),
        (["--languages", "en", "xx"], "unknown language 'xx'"),
        (["--pairs", "a", "b", "c"], "--pairs must be one file or two, got 3"),
        (["--save-every", "0"], "--save-every must be at least 1, got 0"),
        (["--step", "3"], "unrecognized arguments: --step 3"),
    ],
)
def test_wrong_argument_exits_2_in_one_line(
    align: Run, tmp_path: Path, flags: list[str], message: str
) -> None:
    status, _, error = align(*flags)
    assert status == 2
    assert_one_line(error, message)
    assert not (tmp_path / "out").exists()


def test_missing_arguments_are_named(run: Run) -> None:
    status, _, error = run("align", "--model", "m")
    assert status == 2
    assert_one_line(error, "crossalign align: error: missing: --pairs, --output")
    status, _, error = run("data", "build")
    assert status == 2
    assert_one_line(error, "crossalign data build: error: ", "missing: --mode, --input, --output")


def test_bad_data_leaves_no_directory(align: Run, tmp_path: Path) -> None:
    """Every reader's own errors are tested with it; here is what the command makes of them."""
    bad = tmp_path / "bad.tsv"
    bad.write_text("w3\tw4\nw5\n")
    items = tmp_path / "items.jsonl"
    items.write_text('{"clm_text": "a"}\n')
    for flags, message in (
        (["--pairs", bad], "bad.tsv:2: no TAB"),
        (["--pairs", tmp_path / "none"], "none: cannot be read: No such file"),
        (["--lm-data", items], 'items.jsonl:1: "clm_prompt_len" must be'),
        (["--model", "./none"], "--model: ./none is no directory"),
    ):
        status, _, error = align(*flags)
        assert status == 1
        assert_one_line(error, message)
        assert not (tmp_path / "out").exists()


def test_directory_with_files_is_left_alone(align: Run, tmp_path: Path) -> None:
    directory = tmp_path / "out"
    directory.mkdir()
    (directory / "notes.txt").write_text("mine")
    status, _, error = align()
    assert status == 1
    assert_one_line(error, "out: is not empty; name another --output, or --resume the run in it")
    assert [path.name for path in directory.iterdir()] == ["notes.txt"]
    (directory / "notes.txt").unlink()
    assert align("--steps", 1)[0] == 0  # an empty one will do


def test_failure_before_the_first_save_leaves_nothing(
    align: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(checkpoints: checkpoint.Checkpoints, run: AlignmentRun) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(checkpoint.Checkpoints, "save", fail)
    status, _, error = align()
    assert status == 1
    assert_one_line(error, "no space left")
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    assert align()[0] == 1
    assert list((tmp_path / "out").iterdir()) == []


def test_loss_that_is_not_finite_names_the_step(align: Run, tmp_path: Path) -> None:
    status, _, error = align("--learning-rate", "1e30", "--save-every", "1", "--lm-weight", 0)
    assert status == 1
    assert re.search(r"step \d is not finite", error)
    assert_one_line(error)
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out") is not None


def test_traceback_comes_only_with_debug(align: Run, tmp_path: Path) -> None:
    assert "Traceback" not in align("--pairs", tmp_path / "none")[2]
    error = align("--pairs", tmp_path / "none", "--debug")[2]
    assert "Traceback (most recent call last)" in error
    assert error.splitlines()[-1].startswith("crossalign: error: ")


def test_missing_library_is_named_with_its_extra(
    align: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "yaml", None)
    status, _, error = align()
    assert status == 1
    assert_one_line(error, "yaml", "pip install 'crossalign[train]'")


def test_several_corpora_are_mixed_and_bad_lines_left_out(
    run: Run, model_dir: Path, tmp_path: Path
) -> None:
    """The stored settings name every corpus with its languages, so that the run can be resumed."""
    one, two = tmp_path / "one.tsv", tmp_path / "two.tsv"
    one.write_text("".join(f"w{k}\tw{k + 20}\n" for k in range(3, 13)) + "no tab\n")
    two.write_text("".join(f"w{k}\tw{k + 40}\n" for k in range(3, 9)))
    flags = [
        "--pairs",
        f"en-de:{one}",
        f"en-zh:{two}",
        "--mix",
        "equal",
        "--output",
        tmp_path / "o",
    ]
    flags += ["--model", model_dir, "--batch-size", 4, "--device", "cpu"]
    status, _, error = run("align", *flags, "--steps", 1)
    assert status == 1 and "one.tsv:11: no TAB" in error
    flags += ["--skip-bad-lines", 1, "--batch-languages", "one"]
    status, out, error = run("align", *flags, "--steps", 2)
    assert status == 0, error
    assert "on 16 pairs" in out
    settings = yaml.safe_load((tmp_path / "o" / "config.yaml").read_text())
    assert settings["pairs"] == [f"en-de:{one}", f"en-zh:{two}"]
    status, _, error = run("align", "--output", tmp_path / "o", "--resume", "--steps", 3)
    assert status == 0, error
    assert len(metrics_of(tmp_path / "o")) == 3


def test_the_options_of_the_loss_reach_the_run_and_its_record(align: Run, tmp_path: Path) -> None:
    flags = ["--directions", "query_to_key", "query_to_query", "key_to_key", "--hardness", "2"]
    flags += ["--false-negative-margin", "-0.1", "--label-smoothing", "0.1", "--debias", "0.05"]
    losses = []
    for output, given in (("plain", []), ("options", flags)):
        assert align("--steps", 1, *given, output=output)[0] == 0
        metrics = (tmp_path / output / "metrics.jsonl").read_text().splitlines()
        losses.append(json.loads(metrics[0])["contrastive_loss"])
    assert losses[0] != losses[1]
    settings = yaml.safe_load((tmp_path / "options" / "config.yaml").read_text())
    assert settings["directions"] == ["query_to_key", "query_to_query", "key_to_key"]
    assert (settings["false_negative_margin"], settings["hardness"]) == (-0.1, 2.0)
    assert (settings["label_smoothing"], settings["debias"]) == (0.1, 0.05)
    status, _, error = align("--symmetric", *flags[:3], output="both")
    assert status == 2 and "--symmetric and --directions both choose what competes" in error
