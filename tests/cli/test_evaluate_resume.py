"""`crossalign evaluate --resume`: a stopped one goes on, and ends as if it had not stopped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("lm_eval", reason="lm-eval is not installed")
pytest.importorskip("sacrebleu", reason="sacrebleu is not installed")

from crossalign.evaluation.choice_scoring import ChoiceScorer
from tests.support.command_cases import Run, assert_one_line
from tests.support.evaluation_cases import byte_model, byte_tokenizer, write_tasks

ASKED = "--tasks xcopa xwinograd flores --languages en zh --shots 0 1 --limit 2 --device cpu"
PARTS = 2 * (2 * 2 * 2 + 2 * 2)  # models x (tasks x languages + directions) x shots


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Task files, and two models."""
    root = write_tasks(tmp_path_factory.mktemp("tasks"))
    (root / "flores200").mkdir()
    for name in ("eng_Latn", "zho_Hans"):
        (root / "flores200" / f"{name}.devtest").write_text("One.\nTwo is more.\nThree.\n")
    for name in ("one", "two"):
        model = byte_model()
        with torch.no_grad():
            model.lm_head.weight.copy_(torch.randn_like(model.lm_head.weight))
        model.save_pretrained(root / name)
        byte_tokenizer().save_pretrained(root / name)
    return root


@pytest.fixture
def evaluate(run: Run, folder: Path, tmp_path: Path) -> Run:
    def call(*flags: object, output: str = "result.json") -> tuple[int, str, str]:
        models = ["--model", folder / "one", "--compare", folder / "two", "--data", folder]
        asked = [*ASKED.split(), "--max-new-tokens", 4, "--output", tmp_path / output]
        return run("evaluate", *models, *asked, *flags)

    return call


@pytest.fixture
def stop_after(monkeypatch: pytest.MonkeyPatch) -> Any:
    """From now on the n-th part that is scored or translated is interrupted."""

    def arm(count: int) -> list[str]:
        done: list[str] = []
        for name in ("log_probabilities", "continue_greedily"):
            real = getattr(ChoiceScorer, name)

            def counted(self: Any, *args: Any, _real: Any = real, _name: str = name) -> Any:
                if len(done) == count:
                    raise KeyboardInterrupt
                done.append(_name)
                return _real(self, *args)

            monkeypatch.setattr(ChoiceScorer, name, counted)
        return done

    return arm


def test_stopped_evaluation_goes_on_and_gives_the_same_bytes(
    evaluate: Run, stop_after: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = stop_after(-1)
    assert evaluate(output="whole.json")[0] == 0
    assert len(whole) == PARTS
    monkeypatch.undo()
    expected = (tmp_path / "whole.items.jsonl").read_bytes()
    parts = tmp_path / "result.parts.jsonl"
    done = 0
    for stop in (3, 7):  # within the first model's choices, then its translations
        stop_after(stop)
        status = evaluate(*(["--resume"] if done else []))[0]
        monkeypatch.undo()
        assert status == 1 and not (tmp_path / "result.json").exists()
        done += stop
        assert len(parts.read_text("utf-8").splitlines()) == 1 + done
    with parts.open("ab") as file:
        file.write(b'{"key": {"mod')  # as a killed process leaves it
    rest = stop_after(-1)
    status, _, error = evaluate("--resume")
    assert status == 0 and f"{done} parts are finished" in error
    assert len(rest) == PARTS - done
    assert not parts.exists()
    assert (tmp_path / "result.items.jsonl").read_bytes() == expected
    found, wanted = (
        json.loads((tmp_path / name).read_text("utf-8")) for name in ("result.json", "whole.json")
    )
    assert found["settings"].pop("output") != wanted["settings"].pop("output")
    assert json.dumps(found) == json.dumps(wanted)


def test_parts_of_another_evaluation_are_not_taken(
    evaluate: Run, stop_after: Any, tmp_path: Path, folder: Path
) -> None:
    stop_after(1)
    assert evaluate()[0] == 1
    parts = tmp_path / "result.parts.jsonl"
    status, _, error = evaluate()
    assert status == 1
    assert_one_line(error, "result.parts.jsonl: a stopped evaluation", "--resume", "--overwrite")
    status, _, error = evaluate("--resume", "--limit", 3)
    assert status == 1
    assert_one_line(error, "the stopped evaluation had limit 2, this one has 3")
    status, _, error = evaluate("--resume", "--overwrite")
    assert status == 2
    assert_one_line(error, "resume", "overwrite")
    prompts = folder / "one" / "generation_config.json"
    prompts.write_text(prompts.read_text("utf-8") + "\n")
    status, _, error = evaluate("--resume")
    assert status == 1
    assert_one_line(error, "the stopped evaluation had inputs")
    parts.write_bytes(b"no JSON\n")
    status, _, error = evaluate("--resume")
    assert status == 1
    assert_one_line(error, "result.parts.jsonl:1: is no part of an evaluation")
