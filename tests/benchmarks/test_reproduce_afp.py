"""The reproduction of the paper runs, goes on where it stopped, and keeps its data apart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.provenance import ROOT
from benchmarks.report import with_tables
from benchmarks.reproduction import reproduce_afp
from benchmarks.reproduction.data import CAPTION_LANGUAGES, Corpus, load_corpus
from benchmarks.reproduction.measures import CHOICES, questions_of, shares_right
from benchmarks.reproduction.model import new_tokenizer, packed_blocks
from benchmarks.reproduction.plot import BEGIN, END, PAGE, cell, read_rows, table, worst_perplexity
from benchmarks.reproduction.plot import main as plot
from benchmarks.reproduction.reproduce_afp import (
    PRESETS,
    Configuration,
    configurations,
    lm_items,
    main,
)

SMOKE = PRESETS["smoke"]

pytestmark = pytest.mark.usefixtures("attention_in_bfloat16")


@pytest.fixture(scope="module")
def corpus(data_root: Path) -> Corpus:
    return load_corpus(
        data_root,
        ("hi", "id"),
        captions_per_language=50,
        texts_per_language=40,
        held_out=20,
        tests=30,
    )


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_reproduction_runs_resumes_and_is_drawn(
    data_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    few = [each for each in configurations(SMOKE) if each.name in ("AFP", "MCL, batch 32")]
    monkeypatch.setattr(reproduce_afp, "configurations", lambda sizes: few)
    flags = [f"--data={data_root}", f"--work={tmp_path}", "--device=cpu"]
    main(flags)
    path = tmp_path / "results.jsonl"
    first = rows_of(path)
    kinds = [(row["record"], row.get("seed"), row.get("name")) for row in first]
    names = ("before", "AFP", "MCL, batch 32")
    assert kinds == [("run", None, None)] + [("result", s, n) for n in names for s in SMOKE.seeds]
    assert first[0]["commit"] and first[0]["torch"] and first[0]["sizes"]["width"] == SMOKE.width
    for row in first[1:]:
        assert row["layers"].keys() == {"1", "2"}
        assert row["choice"].keys() == (set() if "," in row["name"] else {"0", "5"})
        assert set(row["perplexity"]) == {*CAPTION_LANGUAGES, "hi"}
        assert all(value > 1 for value in row["perplexity"].values())
    assert first[3]["last_step"]["step"] == SMOKE.pairs_seen // SMOKE.main_batch_size
    assert first[5]["last_step"]["pairs"] == 32

    # A call that was cut off after three results goes on with the rest, to the same numbers.
    path.write_text("".join(json.dumps(row) + "\n" for row in first[:4]))
    main(flags)
    again = rows_of(path)
    assert [row["record"] for row in again].count("run") == 2
    results = [row for row in again if row["record"] == "result"]
    for one, other in zip(results, first[1:], strict=True):
        assert {**one, "processor_seconds": 0, "last_step": 0} == {
            **other,
            "processor_seconds": 0,
            "last_step": 0,
        }

    (tmp_path / PAGE).write_text(f"# Title\n{BEGIN}\noutdated\n{END}\nend\n")
    plot([str(path), f"--output={tmp_path}"])
    page = (tmp_path / PAGE).read_text()
    assert "| MCL, batch 32 |" in page and "before, layer 2" in page and "outdated" not in page
    assert page.endswith("end\n")
    assert (tmp_path / "reproduction.png").stat().st_size > 1000
    capsys.readouterr()


def test_the_committed_table_is_what_its_result_file_says() -> None:
    """Its names of measures are those of its day."""
    (path,) = ROOT.glob("benchmarks/results/reproduce_afp_*.jsonl")
    page = (ROOT / "docs" / PAGE).read_text()
    assert path.name in page
    assert page == with_tables(page, table(*read_rows(path)), BEGIN, END)


def test_only_some_configurations_can_be_asked_for(
    tmp_path: Path, data_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [f"--data={data_root}", "--device=cpu", f"--work={tmp_path}"]
    main([*flags, "--only", "MCL"])
    rows = [row for row in rows_of(tmp_path / "results.jsonl") if row["record"] == "result"]
    assert [(row["seed"], row["name"]) for row in rows] == [(seed, "MCL") for seed in SMOKE.seeds]
    with pytest.raises(SystemExit):
        main([*flags, "--only", "mcl"])
    assert "no configuration ['mcl']; there are ['before', 'AFP', 'CIF'" in capsys.readouterr().err


def test_results_of_other_sizes_are_not_mixed(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    path.write_text(json.dumps({"record": "run", "sizes": {"width": 1}}) + "\n")
    with pytest.raises(SystemExit, match="a run of other sizes"):
        main([f"--data={tmp_path}", f"--work={tmp_path}", "--device=cpu"])
    assert len(rows_of(path)) == 1


def test_no_sentence_is_pretrained_on_in_two_languages(corpus: Corpus, data_root: Path) -> None:
    """Nor is any pair's sentence, but for those that the corpora hold several times."""
    everything = load_corpus(
        data_root,
        ("hi", "id"),
        captions_per_language=29_000,
        texts_per_language=10**6,
        held_out=1,
        tests=1,
    )
    assert corpus.texts.keys() == {*CAPTION_LANGUAGES, "hi", "id"}
    captions = {code: everything.texts[code] for code in ("en",)}["en"][:29_000]
    line = {text: number for number, text in enumerate(captions)}
    pretrained = {line[text] for text in corpus.texts["en"] if text in line}
    paired = {line[p.source] for p in corpus.pairs if p.target_language in CAPTION_LANGUAGES}
    assert max(pretrained) < 50 and min(paired) >= 4 * 50 - 1
    english = set(corpus.texts["en"])
    tatoeba = [pair for pair in corpus.pairs if pair.target_language in ("hi", "id")]
    assert len(tatoeba) > 1000
    assert not any(pair.source in english for pair in tatoeba)
    for code in ("hi", "id"):
        targets = {pair.target for pair in tatoeba if pair.target_language == code}
        shared = targets & set(corpus.texts[code])
        assert len(shared) <= 2  # one translation of several English sentences


def test_tests_and_held_out_text_are_apart_from_training(corpus: Corpus) -> None:
    seen = {text for part in corpus.texts.values() for text in part}
    seen |= {text for pair in corpus.pairs for text in pair[:2]}
    for language, (english, foreign) in corpus.tests.items():
        assert len(english) == len(foreign) == 30
        assert not seen & {*english, *foreign, *corpus.held_out[language]}
        assert not set(foreign) & set(corpus.held_out[language])


def test_packed_blocks_hold_whole_sentences_in_a_random_order(corpus: Corpus) -> None:
    tokenizer = new_tokenizer(corpus.texts, 400)
    texts = corpus.texts["de"]
    blocks = packed_blocks(tokenizer, texts, 32, "0 0")
    assert blocks.shape[1] == 32
    decoded = tokenizer.decode(blocks.flatten()).split(tokenizer.eos_token)
    found = [part.removeprefix(tokenizer.bos_token) for part in decoded[:-1]]
    assert len(found) >= len(texts) - 3 and set(found) <= set(texts)
    assert found != texts[: len(found)]
    assert torch.equal(blocks, packed_blocks(tokenizer, texts, 32, "0 0"))
    assert not torch.equal(blocks, packed_blocks(tokenizer, texts, 32, "0 1"))


def test_every_configuration_sees_as_many_pairs() -> None:
    for name in ("cpu", "gpu"):
        sizes = PRESETS[name]
        for each in configurations(sizes):
            steps, rest = divmod(sizes.pairs_seen, each.batch_size)
            assert rest == 0 and sizes.texts_seen % steps == 0
    sizes = PRESETS["cpu"]
    named = {each.name: each for each in configurations(sizes)}
    assert named["MCL"].lm_weight == 0 and named["CIF"].contrastive_weight == 0
    assert named["AFP, layer 4"].layer == 4 and named["MCL, batch 8192"].batch_size == 8192
    assert named["AFP"] == Configuration("AFP", 1.0, 1.5, 1, sizes.main_batch_size, is_main=True)


def test_texts_mix_translations_and_monolingual_ones(corpus: Corpus) -> None:
    items = lm_items(corpus, SMOKE, 0)
    alone = [item["clm_text"] for item in items if item["clm_prompt_len"] == 0]
    assert len(items) - len(alone) == len(corpus.pairs)
    assert len(alone) == len(set(alone)) > 0
    for texts in corpus.texts.values():
        assert set(alone) & set(texts)  # no language is left out


def test_questions_have_one_right_choice_and_demos_of_other_sentences(corpus: Corpus) -> None:
    tokenizer = new_tokenizer(corpus.texts, 400)
    english, foreign = corpus.tests["hi"]
    asked = questions_of(tokenizer, "en-hi", english, foreign, 2, 5)
    assert asked == questions_of(tokenizer, "en-hi", english, foreign, 2, 5)
    assert len(asked) == 5 * CHOICES
    translation = dict(zip(english, foreign, strict=True))
    for start in range(0, len(asked), CHOICES):
        question = asked[start : start + CHOICES]
        assert len({each.context for each in question}) == 1
        assert len({each.continuation for each in question}) == CHOICES
        parts = question[0].context.split(f"{tokenizer.eos_token}{tokenizer.bos_token}")
        assert len(parts) == 3
        sentence = parts[-1].removesuffix(" =")
        assert question[0].continuation == f" {translation[sentence]}"
        assert all(translation[sentence] not in part for part in parts)


def test_only_the_strictly_best_score_is_right() -> None:
    right, tie, wrong = [-1.0, -2.0, -3.0, -4.0], [-1.0, -1.0, -2.0, -3.0], [-2.0, -1.0, -3.0, -4.0]
    scores = [*right, *tie, *right, *wrong, *wrong, *wrong]
    assert shares_right(scores, ["a", "b", "c"]) == {"a": 0.5, "b": 0.5, "c": 0.0}


def test_cells_show_the_mean_and_the_spread() -> None:
    assert cell([0.25, 0.5, 0.75], ".0%") == "50% (25% to 75%)"
    assert cell([0.5], ".1%") == "50.0%"
    assert cell([None, None], ".1%") == "-"
    before = {"perplexity": {"en": 10.0, "de": 20.0}}
    assert worst_perplexity({"perplexity": {"en": 9.0, "de": 25.0}}, before) == 1.25
    with pytest.raises(ValueError, match="must hold the markers"):
        with_tables("no markers", "table")
