"""`crossalign analyze` from end to end: its files against what the library gives, its errors."""

from __future__ import annotations

import csv
import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from crossalign.analysis import run as analysis_run
from crossalign.analysis.advice import LINES_LOOKED_AT
from crossalign.cli.main import main
from crossalign.evaluation.vectors.geometry import alignment, center_distance, spread, uniformity
from crossalign.evaluation.vectors.margin import margin_scores
from crossalign.models.encode import encode
from crossalign.models.loading import load_model
from tests.support.command_cases import Run
from tests.support.texts.parallel_sentences import LANGUAGES, NUM_LINES, translations
from tests.support.tiny_models import LAYERS, tiny_tokenizer

PNG_START = b"\x89PNG\r\n\x1a\n"


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def compared(
    models: tuple[Path, Path], files: list[Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The results of a comparison in three languages."""
    output = tmp_path_factory.mktemp("results") / "new" / "out"
    arguments = ["--model", models[0], "--compare", models[1], "--pairs", *files]
    arguments += ["--languages", *LANGUAGES, "--output", output, "--device", "cpu"]
    assert main(["analyze", *map(str, arguments)]) == 0
    return output


def expected_vectors(
    directory: Path, layer: int, *, normalize: bool = True
) -> dict[str, torch.Tensor]:
    model = AutoModelForCausalLM.from_pretrained(directory)
    return {
        code: encode(model, tiny_tokenizer(), lines, layer=layer, normalize=normalize)
        for code, lines in translations().items()
    }


def test_every_result_is_there_and_nothing_else(compared: Path) -> None:
    names = {path.name for path in compared.iterdir()}
    assert {
        "retrieval.csv",
        "geometry.csv",
        "projection.csv",
        "analysis.json",
        "report.html",
    } < names
    pictures = {name for name in names if name.endswith(".png")}
    assert {"projection_before.png", "projection_after.png"} < pictures
    assert {"matrix_before.png", "matrix_after.png", "accuracy_by_layer.png"} < pictures
    assert len(names) == len(pictures) + 5
    assert all((compared / name).read_bytes().startswith(PNG_START) for name in pictures)
    assert [path.name for path in compared.parent.iterdir()] == ["out"]


def test_retrieval_csv_holds_every_model_layer_and_pair(
    compared: Path, models: tuple[Path, Path]
) -> None:
    rows = rows_of(compared / "retrieval.csv")
    pairs = list(itertools.combinations(LANGUAGES, 2))
    keys = [
        (row["model"], row["layer"], row["source_language"], row["target_language"]) for row in rows
    ]
    assert keys == [
        (model, str(layer), *pair)
        for model in ("before", "after")
        for layer in range(LAYERS + 1)
        for pair in pairs
    ]
    for model, directory in (("before", models[1]), ("after", models[0])):
        vectors = expected_vectors(directory, 2, normalize=False)  # as they are centered
        ids = torch.arange(NUM_LINES)
        ids[21] = 20  # the line that stands twice
        retrieval, margin = margin_scores(vectors["en"], vectors["zho-CN"], ids=ids)
        row = rows[keys.index((model, "2", "en", "zho-CN"))]
        found = [float(value) for value in list(row.values())[4:]]
        sides = (vectors[code].double() for code in ("en", "zho-CN"))
        centered, _ = margin_scores(*(side - side.mean(dim=0) for side in sides), ids=ids)
        expected = [*retrieval, *margin, *centered[1:]]  # of as many pairs
        assert found == pytest.approx(expected, rel=1e-4, nan_ok=True)
        assert 0 < retrieval.accuracy < 1


def test_margins_are_there(compared: Path) -> None:
    """Some are undefined in a random space, but not all."""
    margins = [float(row["mean_margin"]) for row in rows_of(compared / "retrieval.csv")]
    assert sum(0 < margin < 2 for margin in margins) > len(margins) / 4


def test_geometry_csv_holds_the_measures(compared: Path, models: tuple[Path, Path]) -> None:
    rows = rows_of(compared / "geometry.csv")
    values = {tuple(row.values())[:5]: float(row["value"]) for row in rows}
    assert len(values) == len(rows) == 2 * (LAYERS + 1) * (2 * 3 + 4 * 3 + 1)
    vectors = expected_vectors(models[0], 3)
    en, de = vectors["en"], vectors["de"]
    spreads = spread(en), spread(de)
    expected = {
        ("alignment", "en", "de"): alignment(en, de),
        ("center_distance", "en", "de"): center_distance(*spreads),
        ("uniformity", "en", ""): uniformity(en),
        ("uniformity_of_all", "", ""): uniformity(torch.cat(list(vectors.values()))),
        ("mean_cosine", "de", ""): spreads[1].mean_cosine,
        ("iso_score", "de", ""): spreads[1].iso_score,
    }
    for key, value in expected.items():
        assert values["after", "3", *key] == pytest.approx(value, rel=1e-4), key
    identified = [values["after", "1", "language_identification", code, ""] for code in LANGUAGES]
    assert all(0 <= share <= 1 for share in identified) and sum(identified) > 1.2


def test_analysis_json_records_settings_and_means(
    compared: Path, models: tuple[Path, Path]
) -> None:
    record = json.loads((compared / "analysis.json").read_text(encoding="utf-8"))
    assert record["facts"]["Before (baseline)"] == str(models[1])
    assert record["facts"]["After (model studied)"] == str(models[0])
    assert "PyTorch" in record["facts"]["Software"] and record["facts"]["Layers"] == "0 to 3"
    accuracies = {
        layer: values["accuracy"] for layer, values in record["mean_by_layer"]["after"].items()
    }
    assert record["shown_layer"] == int(max(accuracies, key=lambda layer: accuracies[layer]))
    rows = rows_of(compared / "retrieval.csv")
    shares = [
        float(row[key])
        for row in rows
        if (row["model"], row["layer"]) == ("after", "0")
        for key in ("forward_accuracy", "backward_accuracy")
    ]
    assert accuracies["0"] == pytest.approx(sum(shares) / len(shares))


def test_report_says_which_model_is_which_and_stands_alone(
    compared: Path, models: tuple[Path, Path]
) -> None:
    page = (compared / "report.html").read_text(encoding="utf-8")
    text = " ".join(re.sub(r"<[^>]*>", "", page).split())
    assert f"After is the model studied: {models[0]}." in text
    assert f"Before is what it is compared with: {models[1]}." in text
    assert not re.search(r"https?:|<link|<script|url\(", page)
    sources = re.findall(r'src="([^"]*)"', page)
    assert len(sources) > 10
    assert all(source.startswith("data:image/png;base64,") for source in sources)


@pytest.mark.parametrize("form", ["tsv", "two files"])
def test_one_model_and_two_languages(
    run: Run,
    models: tuple[Path, Path],
    files: list[Path],
    tmp_path: Path,
    form: str,
) -> None:
    pairs = files[:2]
    if form == "tsv":
        texts = translations()
        pairs = [tmp_path / "pairs.tsv"]
        lines = zip(texts["en"], texts["de"], strict=True)
        pairs[0].write_text("".join(f"{source}\t{target}\n" for source, target in lines))
    flags = ["--layers", 2, -1, "--show-layer", -1, "--limit", 30, "--pooling", "last"]
    status, out, error = run(
        "analyze", "--model", models[0], "--pairs", *pairs, "--output", tmp_path / "out", *flags
    )
    assert (status, error) == (0, "")
    assert "30 lines in 2 languages, 2 layers" in out
    rows = rows_of(tmp_path / "out" / "retrieval.csv")
    assert [row["layer"] for row in rows] == ["2", "3"]
    share = sum(float(rows[-1][f"{way}_accuracy"]) for way in ("forward", "backward")) / 2
    shown = f"layer 3, mean of all language pairs\n  translation found first: {100 * share:.1f} %\n"
    assert shown in out
    assert {row["num_pairs"] for row in rows} == {"30"}
    assert {(row["model"], row["source_language"]) for row in rows} == {("model", "source")}
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert "projection_model.png" in names and "projection_before.png" not in names


def test_a_run_that_holds_adapters_alone_is_a_model(
    run: Run, models: tuple[Path, Path], files: list[Path], tmp_path: Path
) -> None:
    """Its directory has no config.json, which was read for the number of layers, and for the
    longest text that the model takes."""
    pairs, adapters = ["--pairs", *files[:2]], tmp_path / "adapters"
    flags = ["--steps", 1, "--batch-size", 4, "--lora-rank", 2, "--device", "cpu"]
    assert run("align", "--model", models[0], *pairs, "--output", adapters, *flags)[0] == 0
    assert not (adapters / "config.json").exists()
    flags = ["--model", adapters, "--compare", models[0], "--output", tmp_path / "out"]
    status, _, error = run("analyze", *pairs, *flags, "--layers", 1)
    assert (status, error) == (0, "")
    assert {row["model"] for row in rows_of(tmp_path / "out" / "retrieval.csv")} == {
        "before",
        "after",
    }
    status, out, error = run("data", "check", *pairs, "--model", adapters)
    assert (status, error) == (0, "") and "tokens: mean" in out


def test_every_sentence_passes_through_a_model_once(
    models: tuple[Path, Path], files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To be measured; the advice looks at the first token of a few sentences afterwards."""
    passed: list[int] = []

    def counted(*arguments: Any, **options: Any) -> Any:
        model, tokenizer = load(*arguments, **options)
        model.get_decoder().register_forward_pre_hook(
            lambda _, __, inputs: passed.append(len(inputs["input_ids"])), with_kwargs=True
        )
        return model, tokenizer

    load = load_model
    monkeypatch.setattr(analysis_run, "load_model", counted)
    settings = analysis_run.AnalysisSettings(
        model=str(models[0]), pairs=files, languages=LANGUAGES, device="cpu", batch_size=16
    )
    analysis_run.analyze(settings, tmp_path / "out")
    assert sum(passed) == (NUM_LINES + LINES_LOOKED_AT) * len(LANGUAGES)


def test_same_arguments_give_the_same_bytes(
    compared: Path,
    run: Run,
    models: tuple[Path, Path],
    files: list[Path],
    tmp_path: Path,
) -> None:
    arguments = ["--model", models[0], "--compare", models[1], "--pairs", *files]
    arguments += ["--languages", *LANGUAGES, "--output", tmp_path, "--device", "cpu"]  # empty: fine
    assert run("analyze", *arguments)[0] == 0
    for path in compared.iterdir():
        assert (tmp_path / path.name).read_bytes() == path.read_bytes(), path.name


def test_real_sentences_in_many_languages(
    run: Run,
    models: tuple[Path, Path],
    data_root: Path,
    tmp_path: Path,
) -> None:
    codes = ("arb", "hin", "tha", "zho-CN")
    folder = data_root / "pairs" / "ntrex"
    paths = [folder / "newstest2019-src.eng.txt.gz"]
    paths += [folder / f"newstest2019-ref.{code}.txt.gz" for code in codes]
    flags = ["--limit", 25, "--layers", 1, "--max-length", 48]
    status, out, error = run(
        *("analyze", "--model", models[0], "--pairs", *paths, "--output", tmp_path / "out"),
        *("--languages", "eng", *codes, *flags),
    )
    assert (status, error) == (0, "")
    assert "25 lines in 5 languages, 1 layers" in out
    assert len(rows_of(tmp_path / "out" / "retrieval.csv")) == 10
    assert re.search("[\u0600-\u06ff]{3}", (tmp_path / "out" / "report.html").read_text("utf-8"))
