"""`crossalign analyze` with content tokens and centering: its tables, and the advice it gives."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from crossalign.evaluation.vectors.geometry import spread
from crossalign.models.encode import encode
from tests.support.command_cases import Run
from tests.support.texts.sentences import sentences
from tests.support.tiny_models import LAYERS, starting_tokenizer, tiny_model

NUM_LINES = 24


@pytest.fixture(scope="module")
def model_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose first token drowns all others at layers 1 to 3, as an attention sink does."""
    directory = tmp_path_factory.mktemp("model")
    model = tiny_model("llama")
    with torch.no_grad():
        model.model.embed_tokens.weight[1] = 1000 * torch.ones(model.config.hidden_size)
    model.save_pretrained(directory)
    starting_tokenizer().save_pretrained(directory)
    return directory


def texts() -> list[list[str]]:
    english = sentences(NUM_LINES)
    return [english, [f"{line} w{3 + number % 5}" for number, line in enumerate(english)]]


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / "text.en", tmp_path / "text.de"]
    for path, lines in zip(paths, texts(), strict=True):
        path.write_text("".join(f"{line}\n" for line in lines))
    return paths


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def hits(queries: Tensor, keys: Tensor) -> float:
    """Share of queries whose own key is nearest by cosine, one query at a time."""
    found = 0
    for index, query in enumerate(queries):
        cosines = [float(query @ key / (query.norm() * key.norm())) for key in keys]
        found += cosines[index] > max(cosines[:index] + cosines[index + 1 :])
    return found / len(queries)


@pytest.mark.parametrize("center", ["none", "batch", "side"])
def test_centered_columns_are_of_vectors_without_the_mean(
    run: Run, model_directory: Path, files: list[Path], tmp_path: Path, center: str
) -> None:
    output = tmp_path / "out"
    flags = ["--pool-tokens", "content", "--center", center, "--output", output]
    code, _, _ = run("analyze", "--model", model_directory, "--pairs", *files, *flags)
    assert code == 0
    model = type(tiny_model("llama")).from_pretrained(model_directory)
    rows = rows_of(output / "retrieval.csv")
    cosines = rows_of(output / "geometry.csv")
    for layer in range(LAYERS + 1):
        sides = [
            encode(
                *(model, starting_tokenizer(), lines),
                layer=layer,
                pool_tokens="content",
                center="none",
                normalize=False,
            ).double()
            for lines in texts()
        ]
        means = [side.mean(dim=0) for side in sides]
        if center == "batch":
            means = [torch.cat(sides).mean(dim=0)] * 2
        centered = [side - mean for side, mean in zip(sides, means, strict=True)]
        row = rows[layer]
        assert float(row["forward_accuracy"]) == pytest.approx(hits(*sides))
        assert float(row["centered_forward_accuracy"]) == pytest.approx(hits(*centered))
        assert float(row["centered_backward_accuracy"]) == pytest.approx(hits(*centered[::-1]))
        shown = sides if center == "none" else centered
        cosine = next(
            float(each["value"])
            for each in cosines
            if (each["layer"], each["measure"]) == (str(layer), "mean_cosine")
        )
        assert cosine == pytest.approx(spread(shown[0]).mean_cosine, abs=1e-5)
    facts = json.loads((output / "analysis.json").read_text())["facts"]
    assert f"content tokens, center: {center}" in facts["Sentence vectors"]


def test_one_line_names_both_options_where_the_first_token_dominates(
    run: Run,
    model_directory: Path,
    files: list[Path],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    arguments = ["analyze", "--model", model_directory, "--pairs", *files, "--output"]
    assert run(*arguments, tmp_path / "plain")[0] == 0
    (line,) = [record.getMessage() for record in caplog.records if record.name == "crossalign"]
    assert line.startswith(f"{model_directory}: the first token") and "\n" not in line
    assert "--pool-tokens content" in line and "--center batch" in line
    caplog.clear()
    other = ["--pool-tokens", "content", "--center", "batch"]
    assert run(*arguments, tmp_path / "other", *other)[0] == 0
    assert not [record for record in caplog.records if record.name == "crossalign"]


def test_model_is_analyzed_as_it_was_aligned(
    run: Run, model_directory: Path, files: list[Path], tmp_path: Path
) -> None:
    aligned, output = tmp_path / "aligned", tmp_path / "out"
    flags = ["--pool-tokens", "content", "--center", "side", "--steps", 1, "--batch-size", 4]
    code, _, errors = run(
        *("align", "--model", model_directory, "--pairs", *files, "--output", aligned, *flags),
        *("--lm-weight", 0, "--device", "cpu"),
    )
    assert code == 0, errors
    code, _, errors = run("analyze", "--model", aligned, "--pairs", *files, "--output", output)
    assert code == 0, errors
    facts = json.loads((output / "analysis.json").read_text())["facts"]
    assert "content tokens, center: side" in facts["Sentence vectors"]
