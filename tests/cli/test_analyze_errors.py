"""`crossalign analyze`: wrong arguments, models that cannot be measured, and what they leave."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.command_cases import Run, assert_one_line
from tests.support.tiny_models import tiny_model, tiny_tokenizer


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--languages", "en"], "argument --languages: 2 names for 2 files of --pairs, got 1"),
        (["--languages", "en", "<b>"], "'<b>' must be a code"),
        (["--layers", "first"], "--layers must be integers or all, got 'first'"),
        (["--layers", "all", "1"], "--layers must be either all or numbers"),
        (["--layers", "9"], "argument --layers: must lie between -4 and 3"),
        (
            ["--layers", "1", "--show-layer", "2"],
            "argument --show-layer: must be one of the layers analyzed, 1, got 2",
        ),
        (
            ["--show-layer", "8"],
            "argument --show-layer: must lie between -4 and 3",
        ),
        (["--limit", "2"], "--limit must be at least 3, got 2"),
        (["--batch-size", "0"], "--batch-size must be at least 1, got 0"),
        (["--max-length", "0"], "--max-length must be at least 1, got 0"),
        (["--seed", "-1"], "--seed must be at least 0, got -1"),
        (["--device", "abacus"], "device must be auto, cpu"),
        (["--pooling", "median"], "invalid choice: 'median'"),
    ],
)
def test_wrong_arguments_exit_2(
    analyze: Run, tmp_path: Path, flags: list[str], message: str
) -> None:
    status, out, error = analyze(*flags)
    assert (status, out) == (2, "")
    assert_one_line(error, "crossalign analyze: error: ", message)
    assert not (tmp_path / "out").exists()


def test_failures_exit_1_and_leave_nothing(
    analyze: Run, models: tuple[Path, Path], tmp_path: Path
) -> None:
    bad = tmp_path / "bad.tsv"
    bad.write_text("a\tb\nno tab\n")
    missing = tmp_path / "no model"
    for flags, message in (
        (["--pairs", bad], f"{bad}:2: no TAB"),
        (["--pairs", tmp_path / "absent.tsv"], "cannot be read: No such file"),
        (["--model", missing], f"{missing} is no directory"),
        (["--compare", missing], f"{missing} is no directory"),
    ):
        status, out, error = analyze(*flags)
        assert (status, out) == (1, "")
        assert_one_line(error, "crossalign: error: ", message)
    assert [path.name for path in tmp_path.iterdir()] == ["bad.tsv"]


def test_model_that_gives_nan_is_an_error(analyze: Run, tmp_path: Path) -> None:
    model = tiny_model("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight.fill_(torch.nan)
    model.save_pretrained(tmp_path / "broken")
    tiny_tokenizer().save_pretrained(tmp_path / "broken")
    status, _, error = analyze("--model", tmp_path / "broken")
    assert status == 1
    assert_one_line(error, "sentence vectors of layer 2 are NaN or infinite")
    assert not (tmp_path / "out").exists()


def test_file_names_of_any_bytes_are_shown(analyze: Run, files: list[Path], tmp_path: Path) -> None:
    odd = [tmp_path / os.fsdecode(name) for name in (b"q\"uote'<b>\xff.en", b"two\nlines.de")]
    for path, text in zip(odd, files, strict=False):
        path.write_bytes(text.read_bytes())
    assert analyze("--pairs", *odd, "--layers", 0)[0] == 0
    record = json.loads((tmp_path / "out" / "analysis.json").read_text(encoding="utf-8"))
    assert record["facts"]["Files"].endswith("lines.de")
    assert "q\"uote'<b>\ufffd.en" in record["facts"]["Files"]
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "q&#34;uote&#39;&lt;b&gt;\ufffd.en" in page


def test_other_peoples_files_are_not_overwritten(analyze: Run, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("mine")
    status, _, error = analyze()
    assert status == 1
    assert_one_line(error, "must be new, empty or hold earlier results only, but has thesis.tex")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.tex"]


def test_models_of_different_depth_are_not_compared(analyze: Run, tmp_path: Path) -> None:
    tiny_model("llama", num_hidden_layers=2).save_pretrained(tmp_path / "shallow")
    status, _, error = analyze("--compare", tmp_path / "shallow")
    assert status == 2
    assert_one_line(error, "--model has 3 blocks and --compare 2")


@pytest.mark.parametrize(
    ("damage", "told"),
    [("token", "its embedding has"), ("cut", "model.safetensors: damaged: ")],
)
def test_both_models_are_checked_before_one_is_measured(
    analyze: Run,
    models: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    damage: str,
    told: str,
) -> None:
    """The one that comes second was looked at when the first had been measured."""
    bad = Path(shutil.copytree(models[0], tmp_path / "bad"))
    if damage == "token":
        tokenizer = tiny_tokenizer()
        tokenizer.add_tokens(["new"])
        tokenizer.save_pretrained(bad)
    else:
        (bad / "model.safetensors").write_bytes(b"")
    monkeypatch.setattr("crossalign.analysis.run.measure_model", None)
    status, _, error = analyze("--model", bad, "--compare", models[1])
    assert status == 1
    assert_one_line(error, f"{bad}", told)


def test_interruption_leaves_nothing(
    analyze: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("crossalign.analysis.results.render_report", interrupted)
    status, _, error = analyze("--layers", 1)
    assert status == 1
    assert_one_line(error, "crossalign: interrupted")
    assert list(tmp_path.iterdir()) == []


def test_help_says_which_model_is_before(run: Run) -> None:
    status, out, _ = run("analyze", "--help")
    text = " ".join(out.split())
    assert status == 0
    assert '--compare NAME_OR_DIR a baseline that --model is compared with ("before")' in text
    assert "(default: all)" in text and "(default: mean)" in text
