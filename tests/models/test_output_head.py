"""output_head and its check, against the logits and losses of the models themselves."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from crossalign.models.next_token_loss import language_model_loss
from crossalign.models.output_head import check_output_head, output_head
from tests.support.tiny_models import CONFIGS, VOCAB_SIZE, tiny_batch, tiny_model


@pytest.mark.parametrize("name", CONFIGS)
def test_output_head_reproduces_the_loss_of_the_model(name: str) -> None:
    model = tiny_model(name)
    batch = tiny_batch()
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    output = model(**batch, labels=labels, output_hidden_states=True)
    check_output_head(model, batch["input_ids"])
    head = output_head(model)
    ours = language_model_loss(
        output.hidden_states[-1],
        head.weight,
        labels,
        bias=head.bias,
        scale=head.scale,
        softcap=head.softcap,
    )
    torch.testing.assert_close(ours, output.loss, rtol=1e-6, atol=1e-6)


def test_check_of_the_head_leaves_the_random_state_alone() -> None:
    model = tiny_model("gpt2").train()  # its dropout draws random numbers
    before = torch.get_rng_state()
    check_output_head(model, tiny_batch()["input_ids"])
    assert torch.equal(torch.get_rng_state(), before)


def test_logits_that_the_config_does_not_explain_are_refused() -> None:
    model = tiny_model("llama")
    original = model.forward

    def tripled(**inputs: Any) -> Any:
        output = original(**inputs)
        output.logits = 3 * output.logits
        return output

    model.forward = tripled
    with pytest.raises(ValueError, match="logits of LlamaForCausalLM must be those of its output"):
        check_output_head(model, tiny_batch()["input_ids"])


def test_head_that_is_no_linear_layer_is_refused() -> None:
    model = tiny_model("llama")
    model.lm_head = torch.nn.Sequential(torch.nn.Linear(32, VOCAB_SIZE))
    with pytest.raises(ValueError, match=r"output embedding of LlamaForCausalLM must be a torch"):
        output_head(model)
