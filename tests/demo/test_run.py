"""The demo from end to end at its smallest size, its parts, and what it does when it fails."""

from __future__ import annotations

import base64
import csv
import io
import json
import math
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from crossalign.alignment.config import TrainingConfig

pytest.importorskip("transformers")
pytest.importorskip("matplotlib")

from transformers import AutoModelForCausalLM, AutoTokenizer

from crossalign.demo import run
from crossalign.demo.corpus import make_corpus
from crossalign.demo.grammar.lexicon import LANGUAGES
from crossalign.demo.language_model import new_model, pretrain, train_tokenizer
from crossalign.demo.measurement import Measurement, gain_and_cost, perplexity
from crossalign.demo.report import write_report
from crossalign.demo.story import ENTRIES
from crossalign.evaluation.vectors.retrieval import retrieval_rows
from crossalign.files.output import atomic_directory, check_output_directory
from crossalign.models.encode import encode

LAYER = 1
PNG_START = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One smoke run, and what it printed."""
    printed = io.StringIO()
    output = tmp_path_factory.mktemp("demo") / "new" / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdout", printed)
        result = run.run_demo(output, smoke=True)
    return result, printed.getvalue()


@pytest.fixture(scope="module")
def corpus() -> Any:
    return make_corpus(num_texts=240, num_pairs=60, num_held_out=40, seed=1)


def test_demo_writes_every_result_and_nothing_else(demo: Any) -> None:
    result, _ = demo
    assert sorted(path.name for path in result.output.iterdir()) == sorted(ENTRIES)
    assert [path.name for path in result.output.parent.iterdir()] == ["out"]


def test_alignment_brings_languages_together(demo: Any) -> None:
    result, _ = demo
    assert result.after.accuracy(LAYER) > 2 * result.before.accuracy(LAYER)
    assert result.before.neighbors[LAYER] > 0.9
    assert result.after.neighbors[LAYER] < 0.7


def test_saved_model_gives_the_measured_vectors(demo: Any) -> None:
    result, _ = demo
    model = AutoModelForCausalLM.from_pretrained(result.output / "model")
    tokenizer = AutoTokenizer.from_pretrained(result.output / "model")
    settings = run.SMOKE
    held_out = make_corpus(
        num_texts=settings.texts_per_language * len(LANGUAGES),
        num_pairs=settings.num_pairs,
        num_held_out=settings.num_held_out,
        seed=0,
    ).held_out
    for language, sentences in held_out.items():
        vectors = encode(model, tokenizer, sentences, layer=LAYER)
        torch.testing.assert_close(vectors, result.after.vectors[language])


def test_csv_and_table_show_the_measured_accuracies(demo: Any) -> None:
    result, printed = demo
    with (result.output / "retrieval.csv").open(encoding="utf-8") as file:
        records = list(csv.DictReader(file))
    assert len(records) == 2 * 3 * 6  # before and after, layers 0 to 2, pairs of four languages
    for measured, name in ((result.before, "before"), (result.after, "after")):
        found = [float(row["forward_accuracy"]) for row in records if row["model"] == name]
        assert found == [row.scores.forward_accuracy for row in measured.rows]
    line = next(line for line in printed.splitlines() if line.startswith("de-ru"))
    expected = [
        f"{100 * before.scores.accuracy:.1f} > {100 * after.scores.accuracy:.1f}"
        for before, after in zip(result.before.rows, result.after.rows, strict=True)
        if (before.source_language, before.target_language) == ("de", "ru")
    ]
    assert re.sub(r"\s+", " ", line) == " ".join(["de-ru", *expected])


def test_what_the_gain_cost_is_printed_and_in_the_report(demo: Any) -> None:
    result, printed = demo
    said = gain_and_cost(result.before, result.after, LAYER)
    assert said in printed.replace("\n", " ")
    assert said in (result.output / "report.html").read_text(encoding="utf-8")


def test_report_stands_alone_and_shows_what_was_measured(demo: Any) -> None:
    result, _ = demo
    page = (result.output / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"https?:|<link|<script|url\(", page)
    sources = re.findall(r'src="([^"]*)"', page)
    assert len(sources) == 2
    for source in sources:
        head, _, body = source.partition(",")
        assert head == "data:image/png;base64"
        assert base64.b64decode(body).startswith(PNG_START)
    for measured in (result.before, result.after):
        for row in measured.rows:
            assert f"{100 * row.scores.accuracy:.1f}" in page
        for value in measured.perplexities.values():
            assert f"{value:.2f}" in page


def test_points_of_the_pictures_are_kept(demo: Any) -> None:
    result, _ = demo
    with (result.output / "projection.csv").open(encoding="utf-8") as file:
        records = list(csv.DictReader(file))
    counts = Counter((record["picture"], record["language"]) for record in records)
    assert set(counts.values()) == {run.SMOKE.num_held_out}
    assert len(counts) == 2 * len(LANGUAGES)


def test_same_seed_gives_same_numbers_and_replaces_earlier_results(
    demo: Any, tmp_path: Path
) -> None:
    result, _ = demo
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "report.html").write_text("of an earlier run")
    again = run.run_demo(tmp_path / "demo", smoke=True, overwrite=True)
    for name in ("retrieval.csv", "projection.csv", "demo.json", "report.html"):
        assert (again.output / name).read_bytes() == (result.output / name).read_bytes(), name
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]


def test_settings_and_results_are_recorded(demo: Any) -> None:
    result, _ = demo
    record = json.loads((result.output / "demo.json").read_text(encoding="utf-8"))
    assert record["settings"]["alignment"]["layer"] == LAYER
    assert record["after"]["mean_accuracy_per_layer"][LAYER] == result.after.accuracy(LAYER)


def test_corpora_share_no_sentence(corpus: Any) -> None:
    texts = set(corpus.texts)
    aligned = {sentence for pair in corpus.pairs for sentence in (pair.source, pair.target)}
    held_out = {sentence for sentences in corpus.held_out.values() for sentence in sentences}
    assert len(texts) == 240
    assert len(aligned) == 120
    assert len(held_out) == 160
    assert not texts & aligned and not texts & held_out and not aligned & held_out


def test_pairs_mix_all_directions_and_texts_all_languages() -> None:
    corpus = make_corpus(num_texts=400, num_pairs=600, num_held_out=0, seed=0)
    directions = Counter((pair.source_language, pair.target_language) for pair in corpus.pairs)
    assert len(directions) == 12 and min(directions.values()) > 20
    cyrillic = sum(bool(re.search("[а-я]", text)) for text in corpus.texts)
    assert cyrillic == 100
    russian = [pair for pair in corpus.pairs if pair.target_language == "ru"]
    assert all(re.fullmatch("[А-Яа-яё ,.?]+", pair.target) for pair in russian)


def test_seed_decides_corpus() -> None:
    sizes = {"num_texts": 40, "num_pairs": 20, "num_held_out": 10}
    assert make_corpus(**sizes, seed=4) == make_corpus(**sizes, seed=4)
    assert make_corpus(**sizes, seed=4).held_out != make_corpus(**sizes, seed=5).held_out


def test_tokenizer_keeps_any_text(corpus: Any) -> None:
    tokenizer = train_tokenizer(corpus.texts, 500)
    assert len(tokenizer) == 500
    for text in [corpus.held_out["ru"][0], corpus.held_out["es"][1], "žluťoučký 猫 🙂"]:
        ids = tokenizer(text)["input_ids"]
        assert ids[0] == tokenizer.bos_token_id
        assert tokenizer.decode(ids[1:]) == text


def test_perplexity_is_that_of_one_text_at_a_time(corpus: Any) -> None:
    tokenizer = train_tokenizer(corpus.texts, 500)
    model = new_model(tokenizer, hidden_size=32, num_blocks=1, seed=0)
    texts = corpus.held_out["de"][:7]
    total = count = 0.0
    for text in texts:
        ids = torch.tensor([[*tokenizer(text)["input_ids"], tokenizer.eos_token_id]])
        scores = model(ids).logits[0, :-1].double().log_softmax(dim=-1)
        total -= scores.gather(1, ids[0, 1:, None]).sum().item()
        count += ids.shape[1] - 1
    found = perplexity(model, tokenizer, texts, batch_size=3)
    assert found == pytest.approx(math.exp(total / count), rel=1e-5)


def test_pretraining_learns_the_texts(corpus: Any) -> None:
    tokenizer = train_tokenizer(corpus.texts, 500)
    model = new_model(tokenizer, hidden_size=32, num_blocks=1, seed=0)
    before = perplexity(model, tokenizer, corpus.texts)
    config = TrainingConfig(steps=20, batch_size=16, learning_rate=1e-2, device="cpu")
    pretrain(model, tokenizer, corpus.texts, config)
    assert perplexity(model, tokenizer, corpus.texts) < before / 3
    assert not model.training


def test_report_escapes_what_it_shows(tmp_path: Path) -> None:
    held_out = {code: [f"<b>{code}&{i}</b>" for i in range(5)] for code in LANGUAGES}
    vectors = {code: torch.nn.functional.normalize(torch.randn(5, 4)) for code in LANGUAGES}
    rows = list(retrieval_rows(vectors, 0)) + list(retrieval_rows(vectors, 1))
    measured = Measurement(rows, [1.0, 1.0], dict.fromkeys(LANGUAGES, 2.0), vectors)
    facts = {"Model": "<script>"}
    write_report(
        tmp_path, measured, measured, held_out, layer=1, num_pairs=3, opening="<i>", facts=facts
    )
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<b>en" not in page and "<script>" not in page and "<p><i>" not in page
    assert "&lt;b&gt;en&amp;0&lt;/b&gt;" in page and "&lt;script&gt;" in page


@pytest.mark.parametrize("had_results", [False, True])
def test_failed_write_leaves_output_as_it_was(tmp_path: Path, had_results: Any) -> None:
    output = tmp_path / "demo"
    if had_results:
        output.mkdir()
        (output / "report.html").write_text("earlier")
    kept: dict[str, Any] = {"overwrite": True, "entries": ENTRIES}
    with pytest.raises(KeyboardInterrupt), atomic_directory(output, **kept) as directory:
        (directory / "report.html").write_text("half")
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.iterdir()] == (["demo"] if had_results else [])
    if had_results:
        assert (output / "report.html").read_text() == "earlier"


def test_nothing_is_written_before_the_last_measurement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that even a run that is killed leaves nothing behind."""
    monkeypatch.setattr(run, "align", lambda *_, **__: pytest.fail("at alignment"))
    with pytest.raises(pytest.fail.Exception, match="at alignment"):
        run.run_demo(tmp_path / "new" / "demo", smoke=True)
    assert list(tmp_path.iterdir()) == []


def test_other_peoples_files_are_not_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "_tell", None)  # refused before any work
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(FileExistsError, match=r"must be new, empty or.*thesis\.tex"):
        run.run_demo(tmp_path, smoke=True)
    with pytest.raises(FileExistsError, match="must be a directory"):
        run.run_demo(tmp_path / "thesis.tex", smoke=True)
    link = tmp_path / "link"
    link.symlink_to(tmp_path)
    with pytest.raises(FileExistsError, match="must be a directory"):
        check_output_directory(link, entries=ENTRIES)
    assert (tmp_path / "thesis.tex").read_text() == "mine"


def test_output_that_cannot_be_made_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "_tell", None)
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError, match="is not a directory"):
        run.run_demo(tmp_path / "file" / "demo", smoke=True)
    monkeypatch.setattr("os.access", lambda path, mode: False)  # root may write everywhere
    with pytest.raises(PermissionError, match="may not be written to"):
        run.run_demo(tmp_path / "deep" / "demo", smoke=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"device": "abacus"}, "device must be auto, cpu"), ({"seed": -1}, "seed must be at least 0")],
)
def test_unusable_option_is_refused_before_any_work(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        run.run_demo(tmp_path / "demo", smoke=True, **options)
    assert list(tmp_path.iterdir()) == []
