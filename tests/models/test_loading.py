"""From a name to a model: one sentence that begins with the name says what cannot be loaded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from crossalign.files.text import DataError
from crossalign.models.loading import load_config, load_model, load_tokenizer, load_without_weights
from tests.support.tiny_models import tiny_model, tiny_tokenizer


def saved(folder: Path, **config: Any) -> str:
    """A model's folder with only its configuration."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def test_a_model_with_code_of_its_own_is_refused_and_nobody_is_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It asked on standard output whether to run the code, and waited."""
    auto_map = {"AutoConfig": "configuration_own.Own", "AutoModelForCausalLM": "modeling_own.Own"}
    name = saved(tmp_path / "own", model_type="own", auto_map=auto_map)
    (tmp_path / "own" / "configuration_own.py").write_text("raise SystemExit('it ran')")
    with pytest.raises(ValueError, match=f"{name}: needs Python code .* does not run"):
        load_model(name)
    assert capsys.readouterr().out == ""


def test_an_encoder_decoder_model_is_refused_in_one_line(tmp_path: Path) -> None:
    name = saved(tmp_path / "t5", model_type="t5")
    with pytest.raises(ValueError, match=f"{name}: is an encoder-decoder model .t5.") as caught:
        load_model(name)
    assert "\n" not in str(caught.value)


def test_a_model_of_another_kind_is_refused_in_one_short_line(tmp_path: Path) -> None:
    """The message listed the names of 200 classes."""
    name = saved(tmp_path / "vision", model_type="vit")
    tiny_tokenizer().save_pretrained(name)
    tiny_model("gpt2").save_pretrained(tmp_path / "other")
    shutil.copy(tmp_path / "other" / "model.safetensors", name)
    for load in (load_model, load_without_weights):
        with pytest.raises(ValueError, match=f"{name}: is no causal language model") as caught:
            load(name)
        assert len(str(caught.value)) < 200 + len(name)


def test_a_misspelled_name_names_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(FileNotFoundError, match=r"^--model: meta-llama/Lama-3: is no directory"):
        load_config("meta-llama/Lama-3", "--model: ")


def test_adapters_without_their_model_name_it(tmp_path: Path) -> None:
    folder = tmp_path / "adapters"
    folder.mkdir()
    base = str(tmp_path / "moved")
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))
    for load in (load_config, load_model):
        with pytest.raises(
            FileNotFoundError, match=f"{folder}: holds adapters of the model {base}"
        ):
            load(str(folder))


def test_a_token_without_a_row_is_refused_and_a_padding_token_is_not(tmp_path: Path) -> None:
    """It died at whatever step had the token, with "index out of range in self"."""
    tiny_model("gpt2").save_pretrained(tmp_path)
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    tokenizer.save_pretrained(tmp_path)
    load_model(str(tmp_path))
    tokenizer.add_tokens(["w97"])
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="token 'w97' of id 98, but its embedding has 97 rows"):
        load_model(str(tmp_path))


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    tiny_model("gpt2").save_pretrained(tmp_path / "model", max_shard_size="8KB")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("damage", ["cut", "emptied", "missing"])
def test_a_damaged_file_of_weights_names_itself(model_folder: Path, damage: str) -> None:
    """It was "Error while deserializing header", of whichever of a hundred files."""
    path = sorted(model_folder.glob("*.safetensors"))[1]
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(content[: len(content) // 2 if damage == "cut" else 0])
    told = "is not there, but .*index.json names it" if damage == "missing" else "damaged: "
    with pytest.raises((FileNotFoundError, DataError), match=f"^--model: {path}: {told}"):
        load_model(str(model_folder), flag="--model: ")
    for each in model_folder.glob("model*"):
        each.unlink()
    with pytest.raises(FileNotFoundError, match=f"^{model_folder}: holds no weights"):
        load_model(str(model_folder))


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json"])
def test_a_damaged_description_names_itself(model_folder: Path, name: str) -> None:
    """It was "Expecting property name enclosed in double quotes: line 1 column 2", of no file."""
    (model_folder / name).write_text("{damaged")
    for load in (load_model, load_without_weights):
        with pytest.raises(DataError, match=f"^{model_folder / name}: damaged: is not JSON"):
            load(str(model_folder))


def test_a_tokenizer_that_tokenizers_does_not_take_is_named(model_folder: Path) -> None:
    (model_folder / "tokenizer.json").write_text('{"model": {"type": "Own"}}')
    with pytest.raises(ValueError, match=f"^{model_folder}: cannot be loaded: "):
        load_tokenizer(str(model_folder))


def test_a_model_without_a_tokenizer_is_refused(model_folder: Path) -> None:
    """transformers made an empty one, and a run of 40 pairs ended with a loss of 0."""
    for path in model_folder.glob("tokenizer*"):
        path.unlink()
    for load in (load_model, load_without_weights):
        with pytest.raises(ValueError, match=f"^{model_folder}: holds no tokenizer"):
            load(str(model_folder))


def test_weights_that_the_files_lack_are_not_drawn_at_random(tmp_path: Path) -> None:
    """An encoder, or a base model without its head, was scored with random weights."""
    model = tiny_model("llama", tie_word_embeddings=False)
    model.model.save_pretrained(tmp_path)  # without the head
    tiny_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"lack 1 weights of a LlamaForCausalLM.*lm_head.weight"):
        load_model(str(tmp_path))
