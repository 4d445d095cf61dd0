"""Reports of users of other projects about models: padding, architectures, tokenizers, adapters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from crossalign import encode, hidden_states_at
from crossalign.alignment.model import AlignmentModel
from crossalign.models.loading import load_model
from crossalign.models.output_head import check_output_head
from tests.support.command_cases import Run
from tests.support.tiny_models import HIDDEN, VOCAB_SIZE, tiny_batch, tiny_model, tiny_tokenizer
from tests.support.unusual_models import SIZES, gemma3n, mllama


@pytest.mark.parametrize("name", ["xglm", "gpt2", "gpt_neo"])
def test_left_padding_gives_the_loss_of_right_padding(name: str) -> None:
    """Kind: positions that a model counts from the edge of a row. Source: trl#469,
    transformers#22161."""
    losses = []
    for side in ("left", "right"):
        lengths = (7, 4, 1)
        source, target = (tiny_batch(lengths, "right", seed) for seed in (1, 2))
        if side == "left":
            for batch in (source, target):
                for row, length in enumerate(lengths):
                    for tensor in batch.values():
                        tensor[row] = tensor[row].roll(max(lengths) - length)
        losses.append(AlignmentModel(tiny_model(name), layer=2)(source, target).loss)
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-5, atol=1e-5)


def test_a_multimodal_wrapper_takes_text_in_train_mode() -> None:
    """Kind: inputs that only a wrapper asks for. Source: trl#5032, transformers#45222."""
    text = {**SIZES, "num_hidden_layers": 2, "head_dim": 8, "sliding_window": 4}
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    vision |= {"num_attention_heads": 2, "image_size": 8, "patch_size": 4}
    config = transformers.Gemma3Config(
        text_config=text, vision_config=vision, mm_tokens_per_image=4
    )
    model = transformers.Gemma3ForConditionalGeneration(config).train()
    states = hidden_states_at(model, 1, **tiny_batch())
    assert states.shape == (3, 7, HIDDEN)
    assert AlignmentModel(model, layer=1)(tiny_batch(), tiny_batch(seed=2)).loss.isfinite()
    assert encode(model, tiny_tokenizer(), ["w3 w4", "w5"], layer=1).isfinite().all()


@pytest.mark.parametrize("name", ["mistral", "gemma2"])
def test_a_vector_does_not_depend_on_its_batch(name: str) -> None:
    """Kind: batch invariance, with sliding windows. Source: transformers#39302."""
    sentences = ["w3 w4 w5 w6 w7 w8 w9", "w10", "w11 w12 w13"]
    model, tokenizer = tiny_model(name), tiny_tokenizer()
    together = encode(model, tokenizer, sentences, layer=2)
    alone = torch.cat([encode(model, tokenizer, [each], layer=2) for each in sentences])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-6)


def test_a_model_whose_last_entry_is_not_its_last_state_has_a_text_loss() -> None:
    """Kind: states that are no plain tuple. Source: transformers#48087."""
    model = tiny_model("llama")
    original = model.forward

    def untied(**given: Any) -> Any:
        output = original(**{**given, "output_hidden_states": True})
        output.hidden_states = (*output.hidden_states[:-1], 2 * output.hidden_states[-1])
        return output

    model.forward = untied
    check_output_head(model, tiny_batch()["input_ids"])


def test_blocks_that_text_skips_keep_their_numbers() -> None:
    """Kind: blocks that do not run. Source: vllm#9479."""
    model, batch = mllama([1]), tiny_batch()
    with torch.no_grad():
        before, skipped, after = (hidden_states_at(model, layer, **batch) for layer in (1, 2, 3))
    assert torch.equal(before, skipped) and not torch.equal(skipped, after)


def test_states_of_several_streams_give_one_vector() -> None:
    """Kind: states of more than one stream (AltUp). Source: transformers#39059."""
    assert encode(gemma3n(), tiny_tokenizer(), ["w3 w4", "w5"], layer=2).shape == (2, HIDDEN)


def test_a_padding_token_without_a_row_does_no_harm_and_a_word_without_one_is_refused(
    align: Run, tmp_path: Path
) -> None:
    """Kind: tokenizers with more ids than rows. Source: llama-cookbook#189."""
    tiny_model("gpt2").save_pretrained(tmp_path / "model")
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    assert tokenizer.pad_token_id == VOCAB_SIZE  # no padding is ever looked up
    tokenizer.save_pretrained(tmp_path / "model")
    assert align("--model", tmp_path / "model", "--steps", 1)[0] == 0
    tokenizer.add_tokens(["w500"])
    tokenizer.save_pretrained(tmp_path / "model")
    status, _, error = align("--model", tmp_path / "model", "--steps", 1, output="second")
    assert status == 1
    assert f"'w500' of id {VOCAB_SIZE + 1}, but its embedding has {VOCAB_SIZE} rows" in error
    assert not (tmp_path / "second").exists()


# peft asks transformers by a name that is on its way out.
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_adapters_of_a_tied_model_survive_a_merge(
    align: Run, model_dir: Path, tmp_path: Path
) -> None:
    """Kind: adapters on tied embeddings. Source: transformers#45127."""
    peft = pytest.importorskip("peft")
    assert align("--lora-rank", 2, "--steps", 2)[0] == 0
    adapted, tokenizer = load_model(str(tmp_path / "out"))
    base, _ = load_model(str(model_dir))
    assert base.config.tie_word_embeddings
    merged = peft.PeftModel.from_pretrained(base, tmp_path / "out").merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    tokenizer.save_pretrained(tmp_path / "merged")
    again, _ = load_model(str(tmp_path / "merged"))
    with torch.no_grad():
        batch = tiny_batch()
        expected, got = adapted.eval()(**batch).logits, again.eval()(**batch).logits
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_a_strange_generation_config_does_not_stop_the_save(
    align: Run, model_dir: Path, tmp_path: Path
) -> None:
    """Kind: saving that fails after training. Source: Qwen3-ASR#210, transformers#29988."""
    model, tokenizer = load_model(str(model_dir))
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    strange = {"do_sample": False, "temperature": 0.6, "top_p": 0.9}
    (tmp_path / "model" / "generation_config.json").write_text(json.dumps(strange))
    assert align("--model", tmp_path / "model", "--steps", 1)[0] == 0
    kept = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert {name: kept[name] for name in strange} == strange


def test_empty_sentences_give_zeros() -> None:
    """Kind: empty texts. Source: mteb#1043, google-research-datasets/paws#4."""
    vectors = encode(tiny_model("llama"), tiny_tokenizer(), ["", " ", "w3"], layer=2)
    assert not vectors[:2].any() and vectors[2].any() and vectors.isfinite().all()
