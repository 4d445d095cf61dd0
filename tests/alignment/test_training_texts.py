"""The texts of the next-token loss: which tokens are labels, what is cut, how rows are padded."""

from __future__ import annotations

import pytest
from tokenizers.processors import TemplateProcessing

from crossalign.alignment.batches import Batches
from crossalign.data.builders import TrainingItem
from crossalign.data.items import label_answers
from crossalign.data.pairs import Pair
from crossalign.models.next_token_loss import IGNORED_LABEL as IGNORED
from tests.support.tiny_models import VOCAB_SIZE, tiny_model, tiny_tokenizer
from tests.support.training import (
    CPU,
    make_config,
    make_pairs,
    run_align,
)


def item(text: str, prompt_length: int) -> TrainingItem:
    return {"sent0": "", "sent1": "", "clm_text": text, "clm_prompt_len": prompt_length}


def test_labels_are_the_answer_and_its_end() -> None:
    texts = [item("w3 w4 : w5 w6", 8), item("w7 w8", 0), item("w3 w4", 4), item("w3 w4", 2)]
    rows = label_answers(tiny_tokenizer(), texts, 64)
    eos = 2
    assert rows[0].input_ids == [3, 4, 0, 5, 6, eos]
    assert rows[0].labels == [IGNORED, IGNORED, IGNORED, 5, 6, eos]
    assert rows[1].labels == [7, 8, eos]
    # The border lies inside "w4": a token that spans it belongs to the answer.
    assert rows[2].labels == rows[3].labels == [IGNORED, 4, eos]


def test_characters_are_counted_not_bytes() -> None:
    text = "ü😀 w3 w4"
    rows = label_answers(tiny_tokenizer(), [item(text, text.index("w4"))], 64)
    assert rows[0].labels[-2:] == [4, 2]
    assert set(rows[0].labels[:-2]) == {IGNORED}


def test_tokens_of_the_tokenizer_itself_count_and_end_only_once() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    rows = label_answers(tokenizer, [item("w3 w4", 3)], 64)
    assert rows[0].input_ids == [1, 3, 4, 2]
    assert rows[0].labels == [1, IGNORED, 4, 2]


def test_cut_text_has_no_end() -> None:
    rows = label_answers(tiny_tokenizer(), [item("w3 w4 w5 w6", 3), item("w3 w4 w5", 3)], 3)
    assert [row.input_ids for row in rows] == [[3, 4, 5], [3, 4, 5]]
    assert [row.labels for row in rows] == [[IGNORED, 4, 5]] * 2


def test_answers_cut_away_are_reported(caplog: pytest.LogCaptureFixture) -> None:
    items = [item("w3 w4 w5 w6", 9), item("w7 w8", 3)]
    records, _ = run_align(
        make_pairs(8), make_config(steps=1, max_length=3, lm_batch_size=2), lm_items=items
    )
    assert "of 2 texts 1 have no answer within max_length=3; raise max_length" in caplog.text
    assert records[0]["lm_loss"] > 0
    with pytest.raises(ValueError, match=r"of 1 texts 1 have no answer .* nothing to train on"):
        run_align(make_pairs(8), make_config(steps=1, max_length=3), lm_items=items[:1])


def test_a_step_whose_texts_lost_their_answers_has_no_text_loss() -> None:
    """Counted once, before the first step; such a step goes on with its pairs."""
    items = [item("w3 w4 w5 w6", 9), item("w7 w8", 3)]
    config = make_config(steps=2, max_length=3, chunk_size=2, lm_batch_size=1)
    records, _ = run_align(make_pairs(8), config, lm_items=items)
    assert sorted(record["lm_loss"] > 0 for record in records) == [False, True]


def test_slow_tokenizer_is_an_error() -> None:
    class SlowTokenizer:
        is_fast = False

    with pytest.raises(ValueError, match="SlowTokenizer does not tell which characters"):
        label_answers(SlowTokenizer(), [item("a b", 1)], 8)  # type: ignore[arg-type]


def test_long_sentences_are_cut_at_the_models_positions() -> None:
    model = tiny_model("gpt2")
    pairs = [Pair(" ".join(["w3"] * 100), "w4"), Pair("w5", "w6")]
    batch = Batches(model, tiny_tokenizer(), pairs, None, make_config()).at(0, CPU)
    assert batch.source["input_ids"].shape == (2, 64)
    assert batch.source["attention_mask"].sum(dim=1).sort().values.tolist() == [1, 64]
    assert int(batch.source["input_ids"].max()) < VOCAB_SIZE


def test_padding_is_masked_and_carries_no_label() -> None:
    batches = Batches(tiny_model("llama"), tiny_tokenizer(), make_pairs(20), None, make_config())
    batch = batches.at(0, CPU)
    assert batch.lm is not None
    padding = batch.lm["attention_mask"] == 0
    lengths = [
        len(batches.lm_items[i]["clm_text"].split()) + 1 for i in batches.lm_stream.take(0, 8)
    ]
    assert batch.lm["attention_mask"].sum(dim=1).tolist() == sorted(lengths, reverse=True)
    assert padding.any() and (batch.lm["labels"][padding] == IGNORED).all()
    assert all(int(mask[0]) == 1 for mask in batch.lm["attention_mask"])  # on the right
