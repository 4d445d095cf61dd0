"""encode_layers: every layer from one pass, equal to encode; retrieval on a live model."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch

from crossalign.evaluation.vectors.layer_embeddings import encode_layers, retrieval_by_layer
from crossalign.evaluation.vectors.retrieval import retrieval_scores
from crossalign.models.encode import encode
from crossalign.models.hidden_states import find_blocks
from crossalign.pooling.choices import Pooling
from tests.support.texts.sentences import sentences
from tests.support.tiny_models import HIDDEN, LAYERS, tiny_model, tiny_tokenizer


@pytest.mark.parametrize("name", ["gpt2", "bloom", "llama", "gemma2", "opt", "xglm"])
@pytest.mark.parametrize("pooling", ["mean", "last", "max"])
def test_every_layer_equals_encode(name: str, pooling: Pooling) -> None:
    model, tokenizer, texts = tiny_model(name), tiny_tokenizer(), sentences(23)
    layers = [*range(LAYERS + 1), -1, -2]
    found = encode_layers(model, tokenizer, texts, layers, pooling=pooling, batch_size=5)
    assert list(found) == layers
    for layer in layers:
        expected = encode(model, tokenizer, texts, layer=layer, pooling=pooling)
        torch.testing.assert_close(found[layer], expected, rtol=1e-5, atol=1e-6)


def test_one_forward_per_batch_and_no_block_past_the_last_layer() -> None:
    model, runs = tiny_model("llama"), []
    _, blocks = find_blocks(model)
    for index, block in enumerate(blocks):
        block.register_forward_hook(lambda *_, index=index: runs.append(index))
    model.lm_head.register_forward_hook(lambda *_: pytest.fail("the output embedding ran"))
    encode_layers(model, tiny_tokenizer(), sentences(10), [2, 0, 1], batch_size=5)
    assert runs == [0, 1] * 2
    runs.clear()
    encode_layers(model, tiny_tokenizer(), sentences(10), range(LAYERS + 1), batch_size=10)
    assert runs == [0, 1, 2]


def test_windows_keep_the_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """More sentences than are tokenized at a time."""
    model, tokenizer, texts = tiny_model("gpt2"), tiny_tokenizer(), sentences(23)
    monkeypatch.setattr("crossalign.models.encode._BATCHES_PER_WINDOW", 2)
    found = encode_layers(model, tokenizer, texts, [1], batch_size=4)[1]
    torch.testing.assert_close(found, encode(model, tokenizer, texts, layer=1))


def test_writes_into_what_it_is_given_and_leaves_the_model_as_it_was() -> None:
    model, texts = tiny_model("gpt2").train(), sentences(7)
    given = {2: torch.full((7, HIDDEN), torch.nan)}
    found = encode_layers(model, tiny_tokenizer(), texts, [2], out=given, normalize=False)
    assert found[2] is given[2] and not found[2].isnan().any()
    assert not torch.allclose(found[2].norm(dim=1), torch.ones(7))
    assert model.training and not model.transformer.h[0]._forward_pre_hooks


def test_max_length_cuts() -> None:
    model, tokenizer = tiny_model("gpt2"), tiny_tokenizer()
    long, short = encode_layers(model, tokenizer, ["w5 w6 w7 w8", "w5 w6"], [1], max_length=2)[1]
    torch.testing.assert_close(long, short)


def test_empty_sentence_gives_zeros_and_no_sentence_nothing() -> None:
    model, tokenizer = tiny_model("gpt2"), tiny_tokenizer()
    assert torch.equal(encode_layers(model, tokenizer, [""], [1])[1], torch.zeros(1, HIDDEN))
    assert encode_layers(model, tokenizer, [], [1])[1].shape == (0, HIDDEN)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_bar_shows_on_a_terminal_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for stream, is_shown in ((Terminal(), True), (io.StringIO(), False)):
        monkeypatch.setattr("sys.stderr", stream)
        encode_layers(tiny_model("gpt2"), tiny_tokenizer(), sentences(7), [1], progress="before")
        assert ("before: 100%" in stream.getvalue()) == is_shown


def test_retrieval_of_a_live_model() -> None:
    model, tokenizer = tiny_model("gpt2"), tiny_tokenizer()
    texts = {"en": sentences(20), "de": [f"{text} w9" for text in sentences(20)]}
    rows = retrieval_by_layer(model, tokenizer, texts, [0, 2])
    assert [row[:3] for row in rows] == [(0, "en", "de"), (2, "en", "de")]
    vectors = [encode(model, tokenizer, lines, layer=2) for lines in texts.values()]
    assert rows[1].scores == retrieval_scores(*vectors)
    assert rows[1].scores.accuracy > 0


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"layers": []}, ValueError, "layers must name one layer at least"),
        ({"layers": [1, 9]}, ValueError, "layer must lie between -4 and 3"),
        ({"layers": ["1"]}, TypeError, "layer must be an integer"),
        ({"pooling": "median"}, ValueError, "pooling"),
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1, got 0"),
        ({"max_length": 0}, ValueError, "max_length must be at least 1, got 0"),
        ({"out": {0: torch.zeros(2, HIDDEN)}}, ValueError, r"out must hold a \(2, 32\) tensor for"),
        ({"out": {1: torch.zeros(3, HIDDEN)}}, ValueError, r"out must hold a \(2, 32\) tensor for"),
    ],
)
def test_bad_arguments_are_named(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    arguments = {"layers": [1], **options}
    with pytest.raises(error, match=message):
        encode_layers(tiny_model("gpt2"), tiny_tokenizer(), ["w5", "w6"], **arguments)
