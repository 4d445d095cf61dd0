"""The output embedding of a causal LM, with what its config does to the logits; checked once."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from crossalign.models.hidden_states import hidden_states_at
from crossalign.models.next_token_loss import block_logits, product_dtype
from crossalign.precision import without_autocast


class OutputHead(NamedTuple):
    """What turns a final hidden state into logits: cap * tanh(scale * (W h + bias) / cap)."""

    weight: Tensor  # (V, C)
    bias: Tensor | None  # (V,)
    scale: float
    softcap: float | None


def output_head(model: Any) -> OutputHead:
    """The output embedding of a causal LM with the scale and the soft cap its config names.

    Raises:
        ValueError: the model has no output embedding, or it is no plain linear layer.
    """
    head = model.get_output_embeddings()
    if not (isinstance(head, nn.Linear) and head.weight.is_floating_point()):
        raise ValueError(
            f"lm: the output embedding of {type(model).__name__} must be a torch.nn.Linear with a "
            f"floating-point weight, got {type(head).__name__}; leave it out of adapters and of "
            "quantization"
        )
    config = model.config.get_text_config(decoder=True)
    scale = 1.0
    for name, power in (("logit_scale", 1), ("lm_head_multiplier", 1), ("logits_scaling", -1)):
        if isinstance(factor := getattr(config, name, None), int | float):
            scale *= factor**power
    softcap = getattr(config, "final_logit_softcapping", None)
    return OutputHead(head.weight, head.bias, scale, softcap)


@torch.no_grad()
def check_output_head(model: Any, input_ids: Tensor) -> None:
    """Compares output_head with the logits that the model itself computes for two tokens.

    Raises:
        ValueError: they differ, so that the loss would not be the model's own.
    """
    devices = [input_ids.device] if input_ids.is_cuda else []
    inputs = {"input_ids": input_ids[:1, :2]}
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    with torch.random.fork_rng(devices):
        output = model(**inputs, use_cache=False)
    with torch.random.fork_rng(devices):  # dropout as before
        last = hidden_states_at(model, -1, **inputs)
    head = output_head(model)
    hidden = last.flatten(0, 1).to(product_dtype(last))
    with without_autocast(hidden.device.type):
        logits = block_logits(hidden, *head[:2], 0, head.weight.shape[0], *head[2:])
    expected = output.logits.flatten(0, 1).to(logits.dtype)
    # Wide enough for logits rounded to bfloat16; a missing multiplier or cap is far outside.
    limit = 0.02 * float(expected.nan_to_num(0.0, 0.0, 0.0).abs().max())
    if not torch.allclose(logits, expected, rtol=0.0, atol=limit, equal_nan=True):
        raise ValueError(
            f"lm: the logits of {type(model).__name__} must be those of its output embedding times "
            "config.logit_scale, divided by config.logits_scaling and bounded by "
            "config.final_logit_softcapping, but they differ; compute its loss from the model's "
            "own logits instead"
        )
