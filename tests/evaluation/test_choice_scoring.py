"""Scores of texts against a plain loop; batches, padding sides, lengths; a model left as it was."""

from __future__ import annotations

import copy
import sys
from typing import Any

import pytest
import torch

from crossalign.evaluation.choice_scoring import (
    Candidate,
    ChoiceScorer,
    TooLongError,
    sequence_log_probabilities,
)
from tests.support.evaluation_cases import byte_model, byte_tokenizer, plain_score
from tests.support.tiny_models import CONFIGS, tiny_model, tiny_tokenizer

pytest.importorskip("lm_eval", reason="lm-eval is not installed")
TEXTS = ["w3 w4 w5 w6 w7", "w9", "w3 w4 w5 w6 w8", "w50 w9 w9", "w3 w4", "w3 w4 w5 w6 w7"]


@pytest.mark.parametrize("name", ["gpt2", "gpt_neo", "xglm", "bloom", "llama", "opt", "gemma2"])
def test_scores_equal_plain_loop(name: str) -> None:
    model, tokenizer = tiny_model(name), tiny_tokenizer()
    found = sequence_log_probabilities(model, tokenizer, TEXTS, batch_size=4)
    assert found == pytest.approx([plain_score(model, tokenizer, text) for text in TEXTS], rel=1e-5)
    assert name in CONFIGS and len(set(found)) == len(TEXTS) - 1


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("batch_size", [1, 2, 6])
def test_scores_depend_neither_on_batch_nor_on_padding_side(batch_size: int, side: str) -> None:
    model = tiny_model("gpt2")
    alone = sequence_log_probabilities(model, tiny_tokenizer(), TEXTS, batch_size=1)
    tokenizer = tiny_tokenizer(padding_side=side, pad_token="</s>")
    found = sequence_log_probabilities(model, tokenizer, TEXTS, batch_size=batch_size)
    assert found == pytest.approx(alone, rel=1e-5)


@pytest.mark.parametrize(
    ("template", "first"), [("</s> $A", 2), ("<s> $A </s>", 1), ("$A </s>", 1)]
)
def test_text_begins_with_what_the_tokenizer_puts_first(template: Any, first: Any) -> None:
    """XGLM has a BOS, but its texts begin with EOS; what ends a template does not count."""
    from tokenizers.processors import TemplateProcessing

    model, tokenizer = tiny_model("xglm"), tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=template, special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    scorer = ChoiceScorer(model, tokenizer)
    (found,) = scorer.log_probabilities([Candidate("", "w5 w6")])
    with torch.no_grad():
        expected = model(torch.tensor([[first, 5, 6]])).logits[0].log_softmax(-1)
    assert found == pytest.approx(float(expected[0, 5] + expected[1, 6]), rel=1e-5)
    assert scorer.prefix == ("<s>", "</s>")[first - 1]


def test_text_begins_with_eos_where_there_is_no_bos() -> None:
    assert ChoiceScorer(tiny_model("gpt2"), byte_tokenizer(bos_token=None)).prefix == "</s>"
    with pytest.raises(ValueError, match="neither a BOS nor an EOS token to begin a text with"):
        ChoiceScorer(tiny_model("gpt2"), byte_tokenizer(bos_token=None, eos_token=None))


def test_continuation_counts_its_own_tokens_only() -> None:
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    scorer = ChoiceScorer(model, tokenizer)
    (found,) = scorer.log_probabilities([Candidate("w5 w6", " w7 w8")])
    token_ids = torch.tensor([tokenizer("w5 w6 w7 w8", add_special_tokens=False)["input_ids"]])
    with torch.no_grad():
        expected = model(token_ids).logits[0].log_softmax(-1)
    assert found == pytest.approx(float(expected[1, 7] + expected[2, 8]), rel=1e-5)


def test_model_and_tokenizer_are_left_as_they_were() -> None:
    model, tokenizer = tiny_model("gpt2", resid_pdrop=0.5), tiny_tokenizer()
    model.train()
    model.get_submodule("transformer.h.0").eval()  # parts may differ
    weights = copy.deepcopy(model.state_dict())
    sequence_log_probabilities(model, tokenizer, TEXTS)
    assert model.training and not model.get_submodule("transformer.h.0").training
    assert tokenizer.pad_token is None and tokenizer.padding_side == "right"
    for name, value in model.state_dict().items():
        assert torch.equal(value, weights[name]), name
    assert all(parameter.grad is None for parameter in model.parameters())


def test_live_weights_are_scored_not_a_copy() -> None:
    """A scorer that is made once sees what training changes in between."""
    model, tokenizer = tiny_model("gpt2"), tiny_tokenizer()
    scorer = ChoiceScorer(model, tokenizer)
    before = scorer.log_probabilities([Candidate("", TEXTS[0])])
    with torch.no_grad():
        model.transformer.wte.weight.mul_(1.5)
    after = scorer.log_probabilities([Candidate("", TEXTS[0])])
    assert after == pytest.approx([plain_score(model, tokenizer, TEXTS[0])], rel=1e-5)
    assert after != pytest.approx(before, rel=1e-2)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_adapters_count() -> None:
    peft = pytest.importorskip("peft", reason="peft is not installed")
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    adapted = peft.get_peft_model(
        model, peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False)
    ).eval()
    found = sequence_log_probabilities(adapted, tokenizer, TEXTS)
    assert found == pytest.approx([plain_score(adapted, tokenizer, t) for t in TEXTS], rel=1e-5)


def test_length_at_the_limit_is_scored_and_beyond_it_refused() -> None:
    model, tokenizer = byte_model(max_position_embeddings=32), byte_tokenizer()
    scorer = ChoiceScorer(model, tokenizer)
    longest = "x" * 32
    (found,) = scorer.log_probabilities([Candidate("", longest)])
    # The plain loop also reads the last token, for which this model has no position.
    ids = torch.tensor([[1, *tokenizer(longest)["input_ids"]]])[:, :-1]
    with torch.no_grad():
        expected = model(ids).logits[0].log_softmax(-1)[:, tokenizer("x")["input_ids"][0]].sum()
    assert found == pytest.approx(float(expected), rel=1e-5)
    assert scorer.fits(Candidate("", longest)) and not scorer.fits(Candidate("", longest + "x"))
    with pytest.raises(TooLongError, match="a text needs 33 positions but the model has 32: 'xxx"):
        scorer.log_probabilities([Candidate("", "short"), Candidate("", longest + "x")])
    assert scorer.fits(Candidate("x" * 16, "x" * 17))
    assert not scorer.fits(Candidate("x" * 17, "x" * 17))


def test_no_limit_means_no_cut() -> None:
    """BLOOM has no greatest length; lm-eval's guess of 2048 must not cut its text."""
    model, tokenizer = tiny_model("bloom", vocab_size=259), byte_tokenizer()
    text = "ab" * 1030
    (found,) = sequence_log_probabilities(model, tokenizer, [text])
    assert found == pytest.approx(plain_score(model, tokenizer, text), rel=1e-5)


def test_greedy_continuation_equals_plain_loop() -> None:
    model, tokenizer = byte_model(), byte_tokenizer()
    prompts = ["abc =", "a much longer prompt than that =", "x ="]
    found = ChoiceScorer(model, tokenizer, batch_size=3).continue_greedily(prompts, 6)
    for prompt, text in zip(prompts, found, strict=True):
        token_ids = tokenizer(prompt)["input_ids"]
        for _ in range(6):
            with torch.no_grad():
                token_ids.append(int(model(torch.tensor([token_ids])).logits[0, -1].argmax()))
        written = tokenizer.decode(token_ids[len(prompt) :])
        assert text == written.split("\n")[0].split("</s>")[0].strip()
    assert len(set(found)) > 1
    with pytest.raises(TooLongError, match="leaves no room for 2048 in the model's 2048 positions"):
        ChoiceScorer(model, tokenizer).continue_greedily(["x"], 2048)


def test_bad_input_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = tiny_model("gpt2"), tiny_tokenizer()
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        ChoiceScorer(model, tokenizer, batch_size=0)
    with pytest.raises(ValueError, match="no tokens to score in ' '"):
        sequence_log_probabilities(model, tokenizer, [" "])
    assert sequence_log_probabilities(model, tokenizer, []) == []
    assert ChoiceScorer(model, tokenizer).continue_greedily([], 5) == []
    with torch.no_grad():
        model.transformer.wte.weight[5] = torch.nan
    with pytest.raises(ValueError, match="the model gives NaN for 'w3 w4"):
        sequence_log_probabilities(model, tokenizer, TEXTS)
    monkeypatch.setitem(sys.modules, "lm_eval.models.huggingface", None)
    with pytest.raises(ImportError, match=r"needs lm-eval .*pip install 'crossalign\[evaluate\]'"):
        ChoiceScorer(model, tokenizer)
