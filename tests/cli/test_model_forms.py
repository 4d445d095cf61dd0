"""Models as they come, each through every command that takes a model: a .gguf file, a directory of
sharded weights, a name on the hub. The head is tied, and the tokenizer puts BOS first by itself."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("matplotlib")

from crossalign.demo.corpus import make_corpus
from crossalign.demo.grammar.parallel_grammar import sample_sentences
from crossalign.demo.language_model import new_model, train_tokenizer
from crossalign.models.loading import load_model
from tests.support.command_cases import Run, assert_one_line
from tests.support.evaluation_cases import write_tasks
from tests.support.tiny_gguf import write_gguf

HAS = {name: importlib.util.find_spec(name) is not None for name in ("gguf", "lm_eval")}
SHARDED = pytest.param("sharded", id="sharded")
GGUF = pytest.param(
    "tiny.gguf", id="gguf", marks=pytest.mark.skipif(not HAS["gguf"], reason="needs gguf")
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One model in both forms, pairs and task files."""
    root = tmp_path_factory.mktemp("forms")
    texts = make_corpus(num_texts=200, num_pairs=0, num_held_out=0, seed=0).texts
    tokenizer = train_tokenizer(texts, 300)
    tokenizer.model_max_length = 1000
    model: Any = new_model(tokenizer, hidden_size=16, num_blocks=2, seed=0)
    model.save_pretrained(root / "sharded", max_shard_size="8KB")
    tokenizer.save_pretrained(root / "sharded")
    if HAS["gguf"]:
        write_gguf(root / "tiny.gguf", model, tokenizer)
    sentences = sample_sentences(60, seed=1)
    for code in ("en", "de"):
        lines = "".join(f"{getattr(each, code)}\n" for each in sentences)
        (root / f"text.{code}").write_text(lines, encoding="utf-8")
    write_tasks(root / "tasks")
    return root


def commands(name: str, folder: Path, output: Path) -> dict[str, list[object]]:
    """Command -> its arguments, small."""
    pairs = [folder / "text.en", folder / "text.de"]
    model = ["--model", name, "--output"]
    short = ["--steps", 1, "--batch-size", 4, "--max-length", 200, "--device", "cpu"]
    asked = ["--tasks", "xcopa", "--languages", "en", "--limit", 2, "--data", folder / "tasks"]
    return {
        "data check": ["--model", name, "--pairs", *pairs],
        "align": [*model, output / "aligned", "--pairs", *pairs, *short],
        "analyze": [*model, output / "analysis", "--pairs", *pairs, "--languages", "en", "de"],
        "evaluate": [*model, output / "result.json", *asked],
        "demo": [*model, output / "demo", "--smoke", "--pairs", f"en-de:{pairs[0]},{pairs[1]}"],
    }


@pytest.mark.skipif(not HAS["lm_eval"], reason="needs lm-eval")
@pytest.mark.parametrize("form", [SHARDED, GGUF])
def test_every_command_takes_it(form: str, folder: Path, tmp_path: Path, run: Run) -> None:
    for command, arguments in commands(str(folder / form), folder, tmp_path).items():
        status, _, error = run(*command.split(), *arguments)
        assert status == 0, (command, error)
    config = json.loads((tmp_path / "aligned" / "config.json").read_text("utf-8"))
    assert "quantization_config" not in config and config["tie_word_embeddings"]
    model, tokenizer = load_model(str(tmp_path / "aligned"))  # a plain checkpoint again
    assert tokenizer("word")["input_ids"][0] == tokenizer.bos_token_id
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


@pytest.mark.parametrize("form", [GGUF])
def test_gguf_file_is_the_model_it_was_made_of(form: str, folder: Path) -> None:
    assert len(list((folder / "sharded").glob("*.safetensors"))) > 2
    texts = (folder / "text.de").read_text("utf-8").splitlines()[:3]
    (model, tokenizer), (other, other_tokenizer) = (
        load_model(str(folder / name)) for name in ("sharded", form)
    )
    for text in texts:
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        assert other_tokenizer(text)["input_ids"] == ids[0].tolist()
        with torch.no_grad():
            torch.testing.assert_close(other(ids).logits, model(ids).logits)


def test_name_on_the_hub_is_named_where_it_cannot_be_had(
    folder: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for command, arguments in commands("nobody/no-model", folder, tmp_path).items():
        status, _, error = run(*command.split(), *arguments)
        assert status == 1, command
        assert_one_line(error, "nobody/no-model: is no directory, and no model of this name")
    assert list(tmp_path.iterdir()) == []
