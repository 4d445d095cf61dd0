"""encode: sentence vectors that depend on their sentence only."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crossalign.models.encode import encode
from crossalign.pooling.choices import Pooling
from tests.support.texts.sentences import sentences
from tests.support.tiny_models import HIDDEN, tiny_model, tiny_tokenizer


def expected_vector(model: nn.Module, text: str, layer: int, pooling: str) -> Tensor:
    """From the model's own tuple and plain pooling, one sentence at a time, without padding."""
    ids = tiny_tokenizer()([text], return_tensors="pt")["input_ids"]
    with torch.no_grad():
        hidden = model(ids, output_hidden_states=True).hidden_states[layer][0]
    pooled = {"mean": hidden.mean(0), "last": hidden[-1], "max": hidden.amax(0)}[pooling]
    return F.normalize(pooled, dim=0)


@pytest.mark.parametrize("padding_side", ["left", "right"])
@pytest.mark.parametrize(
    ("name", "layer", "pooling"),
    [("gpt2", 1, "mean"), ("bloom", 2, "last"), ("llama", -1, "max"), ("opt", -1, "mean")],
)
def test_encode_equals_each_sentence_alone(
    name: str, layer: int, pooling: Pooling, padding_side: str
) -> None:
    model, texts = tiny_model(name), sentences()
    expected = torch.stack([expected_vector(model, text, layer, pooling) for text in texts])
    tokenizer = tiny_tokenizer(padding_side=padding_side)
    for batch_size in (1, 4, 64):
        vectors = encode(
            model, tokenizer, texts, layer=layer, pooling=pooling, batch_size=batch_size
        )
        assert vectors.dtype == torch.float32 and not vectors.requires_grad
        torch.testing.assert_close(vectors, expected, rtol=1e-5, atol=1e-6)


def test_encode_leaves_model_and_tokenizer_as_they_were() -> None:
    model, tokenizer = tiny_model("gpt2").train(), tiny_tokenizer(padding_side="left")
    model.transformer.h[1].eval()
    modes = [module.training for module in model.modules()]
    torch.manual_seed(3)
    first = encode(model, tokenizer, sentences())
    assert torch.equal(first, encode(model, tokenizer, sentences()))  # no dropout
    assert [module.training for module in model.modules()] == modes
    assert tokenizer.pad_token is None and tokenizer.padding_side == "left"
    with pytest.raises(ValueError, match="pooling"):
        encode(model, tokenizer, sentences(), pooling="median")  # type: ignore[arg-type]
    assert [module.training for module in model.modules()] == modes


def test_encode_of_nothing_and_of_empty_sentences() -> None:
    model, tokenizer = tiny_model("gpt2"), tiny_tokenizer()
    assert encode(model, tokenizer, []).shape == (0, HIDDEN)
    vectors = encode(model, tokenizer, ["", "w5 w6", ""])
    assert torch.equal(vectors[[0, 2]], torch.zeros(2, HIDDEN))
    torch.testing.assert_close(vectors[1], expected_vector(model, "w5 w6", 1, "mean"))
    assert torch.equal(encode(model, tokenizer, [""]), torch.zeros(1, HIDDEN))


def test_encode_without_normalizing_and_in_bfloat16() -> None:
    model, tokenizer, texts = tiny_model("llama"), tiny_tokenizer(), sentences()
    raw = encode(model, tokenizer, texts, normalize=False)
    assert not torch.allclose(raw.norm(dim=1), torch.ones(len(texts)))
    torch.testing.assert_close(F.normalize(raw), encode(model, tokenizer, texts))
    vectors = encode(model.bfloat16(), tokenizer, texts)
    assert vectors.dtype == torch.float32
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(len(texts)))  # scaled in float32


def test_encode_truncates_at_what_the_model_takes() -> None:
    model, words = tiny_model("gpt2"), ["w7", "w8"] * 50
    vector = encode(model, tiny_tokenizer(), [" ".join(words)])[0]
    torch.testing.assert_close(vector, expected_vector(model, " ".join(words[:64]), 1, "mean"))
    shorter = encode(model, tiny_tokenizer(model_max_length=5), [" ".join(words)])[0]
    torch.testing.assert_close(shorter, expected_vector(model, " ".join(words[:5]), 1, "mean"))


def test_encode_on_a_named_device_with_a_bar(capsys: pytest.CaptureFixture[str]) -> None:
    model, tokenizer, texts = tiny_model("gpt2"), tiny_tokenizer(), sentences()
    vectors = encode(model, tokenizer, texts, device="cpu", progress=True, batch_size=4)
    assert torch.equal(vectors, encode(model, tokenizer, tuple(texts), batch_size=4))
    assert "3/3" in capsys.readouterr().err


def test_encode_names_bad_arguments() -> None:
    model, tokenizer = tiny_model("gpt2"), tiny_tokenizer()
    with pytest.raises(TypeError, match="sentences must be a list of strings, got one str"):
        encode(model, tokenizer, "w5 w6")
    with pytest.raises(TypeError, match="sentences must hold strings, got an entry of type int"):
        encode(model, tokenizer, ["w5", 6])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        encode(model, tokenizer, ["w5"], batch_size=0)
