"""Translation: prompts, demonstrations, greedy outputs, sacrebleu's scores, FLORES files."""

from __future__ import annotations

import gzip
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from crossalign.evaluation import translation
from crossalign.evaluation.choice_scoring import TooLongError
from crossalign.evaluation.translation import (
    FLORES_CODES,
    TranslationSettings,
    bleu_tokenizer,
    evaluate_translation,
    read_flores,
)
from crossalign.files.text import DataError
from tests.support.evaluation_cases import byte_model, byte_tokenizer

pytest.importorskip("lm_eval", reason="lm-eval is not installed")
pytest.importorskip("sacrebleu", reason="sacrebleu is not installed")
ENGLISH = ["The sun is red.", "A dog sleeps.", "We eat bread.", "It rains.", "She reads a book."]
GERMAN = ["Die Sonne ist rot.", "Ein Hund schläft.", "Wir essen Brot.", "Es regnet.", "Sie liest."]


@pytest.fixture
def folder(tmp_path: Path) -> Any:
    path = tmp_path / "flores200"
    path.mkdir()
    for name, lines in (("eng_Latn", ENGLISH), ("deu_Latn", GERMAN)):
        content = "".join(f"{line} \n" for line in lines).encode()
        (path / f"{name}.devtest.gz").write_bytes(gzip.compress(content))
    return tmp_path


class Parrot:
    """Stands in for the scorer: writes down the prompts and answers with given texts."""

    def __init__(self, answers: Any, room: Any = 10**9) -> None:
        self.answers, self.room = answers, room
        self.prompts: list[str] = []
        self.limit = room

    def __call__(self, model: Any, tokenizer: Any, **options: Any) -> Any:
        return self

    def has_room(self, prompt: Any, max_tokens: Any) -> Any:
        return len(prompt) + max_tokens <= self.room

    def continue_greedily(self, prompts: Any, max_tokens: Any) -> Any:
        self.prompts = prompts
        return self.answers[: len(prompts)]


def run(
    monkeypatch: pytest.MonkeyPatch, folder: Path, answers: Any, room: Any = 10**9, **settings: Any
) -> Any:
    parrot = Parrot(answers, room)
    monkeypatch.setattr(translation, "ChoiceScorer", parrot)
    settings = {"directions": [("en", "de")], "max_tokens": 10, **settings}
    found = evaluate_translation(
        torch.nn.Linear(1, 1), byte_tokenizer(), folder, TranslationSettings(**settings)
    )
    return *found, parrot.prompts


def test_prompts_show_other_lines(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    records, log, prompts = run(monkeypatch, folder, GERMAN, shots=[2])
    pairs = {f"{one} = {two}" for one, two in zip(ENGLISH, GERMAN, strict=True)}
    for line, prompt in zip(ENGLISH, prompts, strict=True):
        first, second, asked = prompt.split("</s>")
        assert {first, second} < pairs and first != second
        assert asked == f"{line} =" and line not in first + second
    assert prompts == run(monkeypatch, folder, GERMAN, shots=[2])[2]
    assert prompts != run(monkeypatch, folder, GERMAN, shots=[2], seeds=[1])[2]
    assert records[0]["demonstrations_from"] == "other devtest sentences"
    assert [row["id"] for row in log] == [0, 1, 2, 3, 4]
    json.dumps(records + log)


def test_demonstrations_come_from_dev_where_it_is(
    monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    for name, line in (("eng_Latn", "Yes, {}."), ("deu_Latn", "Ja, {}.")):
        path = folder / "flores200" / f"{name}.dev"
        path.write_text("".join(line.format(k) + "\n" for k in range(3)))
    records, _, prompts = run(monkeypatch, folder, GERMAN, shots=[3])
    assert records[0]["demonstrations_from"] == "dev"
    assert all(
        sorted(p.split("</s>")[:3]) == [f"Yes, {k}. = Ja, {k}." for k in range(3)] for p in prompts
    )
    assert len(records[0]["files_sha256"]) == 4


def test_scores_are_sacrebleus(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    from sacrebleu import corpus_bleu, corpus_chrf

    outputs = ["Die Sonne ist sehr rot.", "Ein Hund schläft.", "", "Es regnet.", "Wir essen Brot."]
    (record,), _, _ = run(monkeypatch, folder, outputs, shots=[0])
    assert record["bleu"] == pytest.approx(corpus_bleu(outputs, [GERMAN]).score)
    assert record["chrf"] == pytest.approx(corpus_chrf(outputs, [GERMAN]).score)
    assert 0 < record["bleu"] < 100
    assert "tok:13a" in record["bleu_signature"] and "nc:6" in record["chrf_signature"]
    assert (record["sentences"], record["empty_outputs"]) == (5, 1)
    assert (record["shots"], record["seed"]) == (0, None)
    (perfect,), _, _ = run(monkeypatch, folder, GERMAN, shots=[0], limit=3)
    assert (perfect["sentences"], perfect["bleu"]) == (3, pytest.approx(100))


def test_demonstrations_give_way_to_the_translation(
    monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    (record,), _, prompts = run(monkeypatch, folder, GERMAN, room=75, shots=[2])
    assert record["sentences_with_fewer_shots"] == sum(p.count("</s>") < 2 for p in prompts) > 0
    assert all(len(prompt) + 10 <= 75 for prompt in prompts)
    with pytest.raises(
        TooLongError, match=r"sentence 1 of .*eng_Latn.* leaves no room for 10 tokens"
    ):
        run(monkeypatch, folder, GERMAN, room=22, shots=[0])
    (record,), log, _ = run(monkeypatch, folder, GERMAN, room=22, shots=[0], too_long="skip")
    assert record["sentences_too_long"] == [0, 1, 2, 4] and [row["id"] for row in log] == [3]
    with pytest.raises(ValueError, match=r"no sentence of .* fits into the model"):
        run(monkeypatch, folder, GERMAN, room=12, shots=[0], too_long="skip")


def test_live_model_writes_the_same_in_any_batch(folder: Path) -> None:
    model, tokenizer = byte_model(), byte_tokenizer()
    settings = TranslationSettings([("en", "de"), ("de", "en")], shots=[1], max_tokens=12)
    found = [
        evaluate_translation(model, tokenizer, folder, settings, batch_size=size) for size in (1, 4)
    ]
    assert found[0] == found[1]
    assert [each["target"] for each in found[0][0]] == ["de", "en"]
    assert len(found[0][1]) == 10 and len({row["output"] for row in found[0][1]}) > 1


def test_words_of_scripts_without_spaces_are_split(monkeypatch: pytest.MonkeyPatch) -> None:
    assert bleu_tokenizer("zh") == "zh" and bleu_tokenizer("th") == "char"
    assert {bleu_tokenizer(code) for code in ("de", "ar", "hi", "sw")} == {"13a"}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert bleu_tokenizer("ja") == bleu_tokenizer("ko") == "char"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    assert (bleu_tokenizer("ja"), bleu_tokenizer("ko")) == ("ja-mecab", "ko-mecab")


def test_bad_files_are_named(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    path = folder / "flores200" / "fra_Latn.devtest"
    path.write_text("Un.\n\nTrois.\n")
    with pytest.raises(DataError, match=r"fra_Latn\.devtest:2: the sentence is empty"):
        read_flores(folder, "fr")
    path.write_text("Un.\nDeux.\n")
    with pytest.raises(DataError, match=r"eng_Latn.* has 5 lines, .*fra_Latn.* has 2: one is cut"):
        run(monkeypatch, folder, GERMAN, directions=[("en", "fr")])
    with pytest.raises(DataError, match=r"no file zho_Hans\.devtest"):
        read_flores(folder, "zh")
    with pytest.raises(ValueError, match=r"9 demonstrations wanted, .* has 4"):
        run(monkeypatch, folder, GERMAN, shots=[9])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"directions": []}, "directions must name at least one pair"),
        ({"directions": [("en", "xx")]}, 'no FLORES code for the language "xx"; known: ar bg'),
        ({"directions": [("en", "en")]}, "directions must join two languages, got en-en"),
        ({"shots": [-1]}, "shots must not be negative"),
        ({"max_tokens": 0}, "max_tokens and limit must be at least 1"),
        ({"limit": 0}, "max_tokens and limit must be at least 1"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TranslationSettings(**{"directions": [("en", "de")], **settings})


def test_joining_demonstrations_needs_an_eos_string(folder: Path) -> None:
    tokenizer = byte_tokenizer(eos_token=None)
    with pytest.raises(ValueError, match="joined by the EOS string, the tokenizer has none"):
        evaluate_translation(
            byte_model(), tokenizer, folder, TranslationSettings([("en", "de")], [1])
        )


def test_real_files_are_parallel(data_root: Path) -> None:
    """599 of 1,012 lines of each of the 27 languages that the folder holds."""
    present = [code for code, name in FLORES_CODES.items()
               if (data_root / "eval" / "flores200" / f"{name}.devtest.gz").exists()]  # fmt: skip
    assert len(present) == 27
    assert {len(read_flores(data_root / "eval", code)[1]) for code in present} == {599}
