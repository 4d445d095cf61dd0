"""encode with content tokens and centering, and how a model remembers what it was aligned with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from crossalign.alignment.config import TrainingConfig
from crossalign.alignment.train import align
from crossalign.data.pairs import Pair
from crossalign.evaluation.vectors.layer_embeddings import encode_layers
from crossalign.models.aligned_as import VectorChoices, choices_of, record_choices
from crossalign.models.encode import encode
from crossalign.models.loading import load_config, load_model
from crossalign.pooling.choices import Center
from tests.support.texts.sentences import sentences
from tests.support.tiny_models import starting_tokenizer, tiny_model


def written_out(model: Any, texts: list[str], *, content: bool, centered: bool) -> Tensor:
    """float64 means of whole hidden states, a sentence and a token at a time."""
    tokenizer, vectors = starting_tokenizer(), []
    for text in texts:
        ids = tokenizer([text], return_tensors="pt")["input_ids"]
        with torch.no_grad():
            states = model(ids, output_hidden_states=True).hidden_states[2][0].double()
        assert ids[0, 0] == 1
        kept = states[1:] if content else states
        vectors.append(sum(kept) / len(kept))
    if centered:
        mean = sum(vectors) / len(vectors)
        vectors = [vector - mean for vector in vectors]
    return torch.stack(vectors)


@pytest.mark.parametrize("content", [False, True])
@pytest.mark.parametrize("centered", [False, True])
@pytest.mark.parametrize("normalize", [False, True])
def test_vectors_equal_written_out_arithmetic(
    content: bool, centered: bool, normalize: bool
) -> None:
    model, texts = tiny_model("llama"), sentences()
    expected = written_out(model, texts, content=content, centered=centered)
    expected = F.normalize(expected, dim=1) if normalize else expected
    vectors = encode(
        model,
        starting_tokenizer(),
        texts,
        layer=2,
        pool_tokens="content" if content else "all",
        center="batch" if centered else "none",
        batch_size=4,
        normalize=normalize,
    )
    assert vectors.dtype == torch.float32
    torch.testing.assert_close(vectors.double(), expected, rtol=1e-4, atol=1e-6)


def test_layers_take_content_tokens_too() -> None:
    model, texts = tiny_model("llama"), sentences()
    expected = written_out(model, texts, content=True, centered=False)
    found = encode_layers(
        model, starting_tokenizer(), texts, [2], pool_tokens="content", normalize=False
    )
    torch.testing.assert_close(found[2].double(), expected, rtol=1e-4, atol=1e-6)


def test_sentence_without_content_gives_zeros() -> None:
    vectors = encode(tiny_model("llama"), starting_tokenizer(), ["", "w5"], pool_tokens="content")
    assert not vectors[0].any() and vectors[1].any()


def test_no_sentence_gives_no_vector() -> None:
    assert len(encode(tiny_model("llama"), starting_tokenizer(), [], center="batch")) == 0


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"center": "mean"}, "center must be one of 'none', 'batch', got 'mean'"),
        ({"pool_tokens": "words"}, "pool_tokens must be one of 'all', 'content', got 'words'"),
    ],
)
def test_unknown_choices_are_named(option: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        encode(tiny_model("llama"), starting_tokenizer(), ["w5"], **option)


@pytest.mark.parametrize("center", ["batch", "side"])
def test_aligned_model_is_encoded_as_it_was_aligned(tmp_path: Path, center: Center) -> None:
    model, tokenizer, texts = tiny_model("llama"), starting_tokenizer(), sentences()
    plain = encode(model, tokenizer, texts, layer=2)
    record_choices(model, VectorChoices("content", center))
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert choices_of(load_config(str(tmp_path))) == ("content", center)
    loaded, its_tokenizer = load_model(str(tmp_path))
    expected = F.normalize(written_out(model, texts, content=True, centered=True), dim=1)
    found = encode(loaded, its_tokenizer, texts, layer=2)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-6)
    found = encode(loaded, its_tokenizer, texts, layer=2, pool_tokens="all", center="none")
    torch.testing.assert_close(found, plain)


def test_align_records_its_choices_in_the_model() -> None:
    model = tiny_model("llama")
    pairs = [Pair(f"w{k} w9", f"w{k + 30}", "", "") for k in range(3, 9)]
    config = TrainingConfig(
        steps=1, batch_size=4, lm_weight=0.0, pool_tokens="content", center="side", device="cpu"
    )
    align(model, starting_tokenizer(), pairs, config, progress=False)
    assert choices_of(model) == ("content", "side")
    assert choices_of(model, center="none") == ("content", "none")


def test_adapters_alone_are_treated_as_their_run_was(tmp_path: Path) -> None:
    base, run = tmp_path / "base", tmp_path / "run"
    tiny_model("llama").save_pretrained(base)
    starting_tokenizer().save_pretrained(base)
    run.mkdir()
    (run / "adapter_config.json").write_text(f'{{"base_model_name_or_path": "{base}"}}')
    assert choices_of(load_config(str(run))) == ("all", "none")
    (run / "config.yaml").write_text("model: base\npool_tokens: content\ncenter: batch\n")
    assert choices_of(load_config(str(run))) == ("content", "batch")
