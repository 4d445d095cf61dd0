"""Two small models, parallel files and the command, for the tests of `crossalign analyze`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.support.command_cases import Run
from tests.support.texts.parallel_sentences import translations
from tests.support.tiny_models import tiny_model, tiny_tokenizer


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two models of one shape with different weights: studied and baseline."""
    directory = tmp_path_factory.mktemp("models")
    for name, noise in (("studied", 0.0), ("baseline", 0.3)):
        model = tiny_model("llama")
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=noise)
        model.save_pretrained(directory / name)
        tiny_tokenizer().save_pretrained(directory / name)
    return directory / "studied", directory / "baseline"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    directory = tmp_path_factory.mktemp("text")
    paths = []
    for code, lines in translations().items():
        paths.append(directory / f"text.{code}")
        paths[-1].write_text("".join(f"{line}\n" for line in lines))
    return paths


@pytest.fixture
def analyze(run: Run, models: tuple[Path, Path], files: list[Path], tmp_path: Path) -> Run:
    """The command with usable arguments; further flags override them."""

    def call(*flags: object) -> tuple[int, str, str]:
        fixed = ["--model", models[0], "--pairs", *files[:2], "--output", tmp_path / "out"]
        return run("analyze", *fixed, *flags)

    return call
