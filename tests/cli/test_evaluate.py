"""`crossalign evaluate`: what it writes and prints, its exit status, its errors in one line."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from crossalign.cli.main import main
from crossalign.evaluation.choice_scoring import ChoiceScorer
from crossalign.evaluation.tasks.items import TASKS
from tests.support.evaluation_cases import byte_model, byte_tokenizer, write_tasks, write_xcopa

pytest.importorskip("lm_eval", reason="lm-eval is not installed")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Two models that answer differently."""
    root = tmp_path_factory.mktemp("models")
    for name in ("one", "two"):
        model = byte_model()
        if name == "two":
            with torch.no_grad():
                model.lm_head.weight.copy_(torch.randn_like(model.lm_head.weight))
        model.save_pretrained(root / name)
        byte_tokenizer().save_pretrained(root / name)
    return root


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    root = write_tasks(tmp_path_factory.mktemp("tasks"))
    write_xcopa(root / "xcopa", "th")
    (root / "flores200").mkdir()
    for name in ("eng_Latn", "zho_Hans"):
        (root / "flores200" / f"{name}.devtest").write_text("One.\nTwo is more.\nThree.\n")
    return root


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Any:
    def call(*arguments: Any) -> Any:
        capsys.readouterr()
        try:
            status = main(["evaluate", *map(str, arguments)])
        except SystemExit as stop:
            status = int(stop.code or 0)
        output = capsys.readouterr()
        return status, output.out, output.err

    return call


@pytest.fixture
def evaluate(run: Any, models: Any, folder: Path, tmp_path: Path) -> Any:
    def call(*flags: Any, tasks: Any = ("xcopa",), languages: Any = ("en", "zh")) -> Any:
        fixed = ["--model", models / "one", "--data", folder, "--device", "cpu"]
        chosen = ["--tasks", *tasks, "--languages", *languages]
        return run(*fixed, *chosen, "--output", tmp_path / "result.json", *flags)

    return call


def test_result_says_all_that_a_reader_needs(evaluate: Any, folder: Path, tmp_path: Path) -> None:
    status, out, err = evaluate("--shots", 0, 1, "--seeds", 4, 5, tasks=TASKS)
    assert status == 0, err
    assert {path.name for path in tmp_path.iterdir()} == {"result.json", "result.items.jsonl"}
    result = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    assert len(result["results"]) == 5 * 2 * 3
    assert {each["task"] for each in result["summary"]} == set(TASKS)
    assert result["settings"]["seeds"] == [4, 5] and result["versions"]["lm_eval"]
    first = result["results"][0]
    assert first["prompt"]["template"].startswith("Premise: {premise}")
    path = folder / "xnli" / "test-en.tsv"
    assert first["files_sha256"][str(path)] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (first["license"], first["rows_of_release"]) == ("CC BY-NC 4.0", 5010)
    log = [json.loads(line) for line in (tmp_path / "result.items.jsonl").read_text().splitlines()]
    for record in result["results"]:
        key = {name: record[name] for name in ("task", "language", "shots", "seed")}
        rows = [each for each in log if key.items() <= each.items()]
        assert len(rows) == record["items"]
        assert sum(each["correct"] for each in rows) == record["correct"]
    assert out.count("xstorycloze  zh") == 3 and "* not above chance" in out
    assert "xwinograd, 1 shots: average of 2 languages" in out and "over seeds" in out
    assert f"wrote {tmp_path / 'result.json'}" in out


def test_two_models_are_compared_on_the_same_items(
    evaluate: Any, models: Any, tmp_path: Path
) -> None:
    status, out, err = evaluate("--compare", models / "two", tasks=["xcopa", "xwinograd"])
    assert status == 0, err
    result = json.loads((tmp_path / "result.json").read_text())
    log = [json.loads(line) for line in (tmp_path / "result.items.jsonl").read_text().splitlines()]
    assert result["compared"]["model"] == str(models / "two")
    assert len(result["comparison"]) == 4
    for test in result["comparison"]:
        answers = {
            name: [
                each["correct"]
                for each in log
                if (each["model"], each["task"], each["language"])
                == (str(models / name), test["task"], test["language"])
            ]
            for name in ("one", "two")
        }
        pairs = list(zip(answers["one"], answers["two"], strict=True))
        assert test["only_model_right"] == pairs.count((True, False))
        assert test["only_compared_right"] == pairs.count((False, True))
        assert test["p_value_holm"] >= test["p_value"]
    assert any(test["accuracy"] != test["accuracy_compared"] for test in result["comparison"])
    assert "compared:" in out and f"model: {models / 'two'}" in out


def test_translation_stands_beside_the_choices(evaluate: Any, tmp_path: Path) -> None:
    flags = ("--max-new-tokens", 5, "--shots", 1, "--translation-pairs", "en-zh")
    status, out, err = evaluate(*flags, tasks=["xcopa", "flores"])
    assert status == 0, err
    result = json.loads((tmp_path / "result.json").read_text())
    (record,) = result["translation"]
    assert (record["source"], record["target"], record["sentences"]) == ("en", "zh", 3)
    assert "tok:zh" in record["bleu_signature"] and "en-zh" in out
    status, out, err = evaluate("--max-new-tokens", 5, "--overwrite", tasks=["flores"])
    assert status == 0 and "en-zh" in out and "zh-en" in out, err
    assert "results" not in json.loads((tmp_path / "result.json").read_text())


def test_prompts_by_choice_are_named(evaluate: Any, tmp_path: Path) -> None:
    status, _, err = evaluate("--prompts", "lm-eval", "--limit", 2, languages=["zh"])
    assert status == 0, err
    (record,) = json.loads((tmp_path / "result.json").read_text())["results"]
    assert (record["prompt"]["source"], record["prompt"]["task"]) == ("lm-eval", "xcopa_zh")
    status, _, err = evaluate("--prompts", "lm-eval", "--overwrite", languages=["en"])
    assert (status, "lm-eval has no prompts for xcopa" in err) == (1, True)


def test_tasks_without_a_language_are_said(evaluate: Any, tmp_path: Path) -> None:
    status, _, err = evaluate("--limit", 1, tasks=["xcopa", "pawsx"], languages=["zh", "th"])
    assert (status, err) == (0, "pawsx has no th: left out\n")
    records = json.loads((tmp_path / "result.json").read_text())["results"]
    found = [(each["task"], each["language"]) for each in records]
    assert found == [("xcopa", "zh"), ("xcopa", "th"), ("pawsx", "zh")]
    status, _, err = evaluate("--overwrite", tasks=["xwinograd"], languages=["en", "ja"])
    assert (status, "no file xwinograd.jp.tsv or dataset.tsv" in err) == (1, True)


def test_check_data_lists_what_is_there(run: Any, folder: Path) -> None:
    status, out, _ = run("--data", folder, "--check-data")
    assert status == 0
    lines = [line.split() for line in out.splitlines()]
    found = {tuple(line[:4]) for line in lines}
    assert ("xnli", "en", "test", "6") in found and ("pawsx", "zh", "demos", "5") in found
    assert ("xwinograd", "en", "test", "8") in found and ("xstorycloze", "zh", "test", "5") in found
    assert "dropped_NS_rows 1" in out and "of 6 rows (release: 2000)" in out
    assert any(line[:3] == ["xcopa", "not", "there:"] and "it" in line for line in lines)
    status, out, _ = run("--data", folder, "--check-data", "--tasks", "flores", "--languages", "zh")
    assert status == 0 and out.split()[:4] == ["flores", "zh", "devtest", "3"]


def test_check_data_names_bad_files_after_the_list(run: Any, tmp_path: Path) -> None:
    write_tasks(tmp_path, ["en"])
    path = tmp_path / "pawsx" / "en" / "test_2k.tsv"
    path.write_text(path.read_text()[:-4])
    status, out, err = run("--data", tmp_path, "--check-data", "--languages", "en")
    assert status == 1 and "xnli" in out
    assert f"bad files: {path}:7: 4 columns expected, got 3" in err and err.count("\n") == 1
    assert run("--data", tmp_path / "no", "--check-data")[::2] == (
        1,
        f"crossalign: error: {tmp_path / 'no'}: no such folder\n",
    )


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--shots", -1), "--shots must be at least 0, got -1"),
        (("--limit", 0), "--limit must be at least 1, got 0"),
        (("--batch-size", 0), "--batch-size must be at least 1, got 0"),
        (("--tasks", "copa"), "argument --tasks: invalid choice: 'copa'"),
        (("--languages", "en", "xx"), "--languages must be those of a task, but none has xx"),
        (("--prompt-language", "xx"), 'no words for the xcopa prompt in "xx"'),
        (("--seeds", 1, 1), "--seeds must name each value once, got 1 1"),
        (("--device", "gpu"), "device must be auto, cpu, cuda"),
        (("--output", "no/folder.json"), "argument --output: no/folder.json must be a file in an"),
        (
            ("--tasks", "flores", "--translation-pairs", "ende"),
            "--translation-pairs must be such as en-de",
        ),
        (("--tasks", "flores", "--languages", "en"), "directions must name at least one pair"),
        (
            ("--tasks", "flores", "--data", "hub"),
            "--data must be a folder: flores is read from files",
        ),
    ],
)
def test_wrong_arguments_exit_with_2(
    evaluate: Any, tmp_path: Path, flags: Any, message: str
) -> None:
    status, _, err = evaluate(*flags)
    assert (status, err.count("\n")) == (2, 1)
    assert message in err
    assert list(tmp_path.iterdir()) == []


def test_missing_arguments_are_named(run: Any, folder: Path, models: Any) -> None:
    status, _, err = run("--data", folder)
    assert (status, "missing: --model, --languages, --output (see" in err) == (2, True)
    status, _, err = run("--check-data")
    assert (status, "missing: --data (see" in err) == (2, True)
    both = ["--model", models / "one", "--compare", models / "one"]
    status, _, err = run("--data", folder, *both, "--languages", "en", "--output", "x.json")
    assert (status, "--compare must differ from --model" in err) == (2, True)


def test_failures_are_one_line_and_leave_nothing(
    evaluate: Any, tmp_path: Path, models: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    status, _, err = evaluate("--model", "/no/such/model")
    assert (status, err) == (1, "crossalign: error: /no/such/model is no directory\n")
    status, _, err = evaluate("--shots", 20)
    assert status == 1 and "20 demonstrations wanted for item 0" in err
    monkeypatch.setitem(sys.modules, "lm_eval.models.huggingface", None)
    status, _, err = evaluate()
    assert status == 1 and err.endswith("pip install 'crossalign[evaluate]'\n"), err
    assert err.count("pip install") == 1
    assert list(tmp_path.iterdir()) == []


def test_help_shows_defaults_and_loads_only_torch() -> None:
    code = (
        "import sys; from crossalign.cli.main import main\n"
        "try: main(['evaluate', '--help'])\n"
        "except SystemExit as stop: assert stop.code == 0, stop.code\n"
        "heavy = {'transformers', 'lm_eval', 'sacrebleu', 'yaml'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    text = " ".join(done.stdout.split())
    for part in ("language of the prompt's words; None = that of the sample", "(default: paper)"):
        assert part in text


@pytest.mark.parametrize(
    ("compare", "told"),
    [
        ("/no/such/model", "/no/such/model is no directory"),
        ("short", "positions but the model has"),
        ("token", "its embedding has"),
        ("cut", "model.safetensors: damaged: "),
    ],
)
def test_the_second_model_is_checked_before_the_first_score(
    evaluate: Any, models: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compare: str,
    told: str,
) -> None:  # fmt: skip
    """A misspelled name, and an item too long for it, came up after all scores of the first."""
    if told.partition(" ")[0] not in compare:
        path = tmp_path / compare
        byte_model(max_position_embeddings=8 if compare == "short" else 512).save_pretrained(path)
        tokenizer = byte_tokenizer()
        tokenizer.add_tokens([f"new{k}" for k in range(300 if compare == "token" else 0)])
        tokenizer.save_pretrained(path)
        if compare == "cut":
            (path / "model.safetensors").write_bytes(b"")
        compare = str(path)
    monkeypatch.setattr(ChoiceScorer, "log_probabilities", None)  # nothing is scored
    status, _, err = evaluate("--compare", compare)
    assert status == 1 and told in err, err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--max-new-tokens", 5000), "leaves no room for 5000 tokens in the model's"),
        (("--shots", 3), "3 demonstrations wanted"),
    ],
)
def test_translations_that_cannot_be_are_known_before_the_first_score(
    evaluate: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: Any, message: str
) -> None:
    """Those of the choice tasks were scored first, hours of them."""

    def scored(*_: object) -> None:
        raise AssertionError("scored before all was known")

    monkeypatch.setattr(ChoiceScorer, "log_probabilities", scored)
    status, _, error = evaluate(*flags, tasks=["xcopa", "flores"])
    assert status == 1
    assert message in error and error.count("\n") == 1, error
    assert not (tmp_path / "result.json").exists()
