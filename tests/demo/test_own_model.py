"""The demo of a model and of pairs that are the user's own."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("matplotlib")

from transformers import AutoConfig

from crossalign.demo import run_demo
from crossalign.demo.corpus import make_corpus
from crossalign.demo.grammar.parallel_grammar import sample_sentences
from crossalign.demo.language_model import new_model, train_tokenizer
from crossalign.demo.measurement import Measurement, accuracy_table
from crossalign.demo.own_text import own_text
from crossalign.evaluation.vectors.retrieval import retrieval_rows
from tests.support.command_cases import Run

NUM_LINES = 90


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    texts = make_corpus(num_texts=200, num_pairs=0, num_held_out=0, seed=0).texts
    tokenizer = train_tokenizer(texts, 300)
    directory = tmp_path_factory.mktemp("own") / "model"
    for each in (new_model(tokenizer, hidden_size=16, num_blocks=4, seed=0), tokenizer):
        each.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Language -> lines that translate one another; "rest": English lines of other sentences."""
    folder = tmp_path_factory.mktemp("pairs")
    sentences = sample_sentences(2 * NUM_LINES, seed=1)
    paths = {}
    for code in ("en", "de", "ru"):
        paths[code] = folder / f"text.{code}"
        lines = [getattr(sentence, code) for sentence in sentences[:NUM_LINES]]
        paths[code].write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    paths["rest"] = folder / "rest.en"
    lines = [sentence.en for sentence in sentences[NUM_LINES:]]
    paths["rest"].write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return paths


def test_own_text_is_parted_without_overlap(files: dict[str, Path]) -> None:
    sources = [f"en-de:{files['en']},{files['de']}", f"ru-en:{files['ru']},{files['en']}"]
    corpus = own_text(sources, seed=0)
    assert list(corpus.held_out) == ["en", "de", "ru"]
    lines = {code: files[code].read_text("utf-8").splitlines() for code in ("en", "de", "ru")}
    numbers = [lines["en"].index(text) for text in corpus.held_out["en"]]
    assert len(set(numbers)) == NUM_LINES // 2
    for code in ("de", "ru"):
        assert corpus.held_out[code] == [lines[code][number] for number in numbers]
    held_out = {text for texts in corpus.held_out.values() for text in texts}
    trained = {text for pair in corpus.pairs for text in (pair.source, pair.target)}
    assert not held_out & trained
    left = NUM_LINES - NUM_LINES // 2
    assert len(corpus.pairs) == 2 * left and len(trained) == 3 * left
    assert {(pair.source_language, pair.target_language) for pair in corpus.pairs} == {
        ("en", "de"),
        ("ru", "en"),
    }
    assert own_text(sources, seed=0) == corpus and own_text(sources, seed=1) != corpus


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ("{en} {de}", "pairs must name their languages, such as en-de:"),
        ("en-de:{en},{de} ru-fr:{ru},{de}", "pairs must have one language in common"),
        ("en-de:{en},{de} en-ru:{rest},{ru}", "40 sentences of 'en' that are in all files.*got 0"),
        ("en-xx:{en},{de}", "unknown language 'xx'"),
    ],
)
def test_pairs_that_cannot_be_used_are_refused(
    files: dict[str, Path], sources: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        own_text(sources.format(**files).split(), seed=0)


def test_own_model_is_shown_before_and_after(
    model: Path, files: dict[str, Path], tmp_path: Path, run: Run
) -> None:
    flags = ["--model", model, "--layer", 2, "--steps", 12, "--output", tmp_path / "demo"]
    status, out, error = run("demo", *flags, "--pairs", f"de-en:{files['de']},{files['en']}")
    assert (status, error) == (0, "")
    assert "de-en" in out and "layer 2*" in out
    page = (tmp_path / "demo" / "report.html").read_text(encoding="utf-8")
    assert f"The language model {model} was taken as it is." in page
    assert "German, English: 45 pairs to align, 45 sentences held out" in page
    found = json.loads((tmp_path / "demo" / "demo.json").read_text(encoding="utf-8"))
    assert found["settings"]["alignment"]["layer"] == 2
    assert found["before"] != found["after"]
    assert set(found["after"]["perplexities"]) == {"de", "en"}
    config: Any = AutoConfig.from_pretrained(tmp_path / "demo" / "model")
    assert config.crossalign == {"pool_tokens": "content", "center": "batch"}


def test_smoke_run_of_own_model_takes_built_in_text(model: Path, tmp_path: Path) -> None:
    result = run_demo(tmp_path / "demo", model=str(model), smoke=True)
    assert set(result.after.perplexities) == {"en", "de", "es", "ru"}
    record = json.loads((result.output / "demo.json").read_text(encoding="utf-8"))
    assert record["settings"]["alignment"]["layer"] == 1  # a quarter of four blocks


def test_table_of_a_deep_model_fits_a_terminal() -> None:
    vectors = {code: torch.randn(5, 4) for code in ("en", "de")}
    rows = [row for layer in range(19) for row in retrieval_rows(vectors, layer)]
    measured = Measurement(rows, [1.0] * 19, {}, {})
    lines = accuracy_table(measured, measured, 4).splitlines()
    assert max(map(len, lines)) <= 80
    assert re.findall(r"layer (\S+)", lines[3]) == ["0", "4*", "6", "12", "18"]


def test_flags_of_own_model_are_checked(model: Path, tmp_path: Path, run: Run) -> None:
    for flags, message in (
        (["--steps", 3], "steps needs a model of yours; add --model"),
        (["--model", model, "--layer", 9], "layer must lie"),
        (["--model", tmp_path / "none"], "--model: "),
        (["--model", model, "--pairs", "en-de:none.tsv"], "none.tsv"),
    ):
        status, _, error = run("demo", "--output", tmp_path / "demo", *flags)
        assert status in (1, 2) and message in error, error
        assert not (tmp_path / "demo").exists()
    with pytest.raises(ValueError, match="need a model"):
        run_demo(tmp_path / "demo", steps=3)
