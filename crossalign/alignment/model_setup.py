"""What the settings ask of the language model: attention, adapters, checkpointing, compile."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from crossalign.alignment.config import TrainingConfig
from crossalign.alignment.freezing import freeze
from crossalign.models.aligned_as import VectorChoices, record_choices
from crossalign.models.hidden_states import find_blocks


def set_up_model(model: Any, config: TrainingConfig, adapters: Path | None = None) -> nn.Module:
    """The model as the settings want it, changed in place; with lora_rank in PEFT's wrapper.

    adapters: a directory with trained ones, to start from.

    Raises:
        ValueError: the model does not have the attention, or what is to be frozen, or has adapters
            already.
    """
    if config.attention != "auto":
        try:
            model.set_attn_implementation(config.attention)
        except (ImportError, ValueError) as error:
            raise ValueError(f"align: attention {config.attention}: {error}") from error
    if config.lora_rank is not None:
        model = _with_adapters(model, config.lora_rank, adapters)
    freeze(model, config.freeze)
    record_choices(model, VectorChoices(config.pool_tokens, config.center))
    if config.gradient_checkpointing:
        _checkpoint_activations(model)
    if config.compile:
        for block in find_blocks(model)[1]:
            # Only the forward: hooks on a block stay outside, and one may end the pass there.
            block.forward = torch.compile(block.forward, dynamic=True)
    return model  # type: ignore[no-any-return]


def _with_adapters(model: nn.Module, rank: int, adapters: Path | None) -> nn.Module:
    from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import load_peft_weights

    # In peft's own wrapper, or in a model into which transformers loaded them.
    if any(isinstance(module, BaseTunerLayer) for module in model.modules()):
        raise ValueError(
            "align: lora_rank must be None for a model that has adapters; merge them first "
            "(peft.PeftModel.merge_and_unload)"
        )
    options = LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
        # GPT-2's own linear layers keep their weights the other way round.
        fan_in_fan_out=any(type(module).__name__ == "Conv1D" for module in model.modules()),
    )
    with warnings.catch_warnings():  # peft asks transformers by a name that is on its way out
        warnings.simplefilter("ignore", FutureWarning)
        wrapped: nn.Module = get_peft_model(model, options)
    if adapters is not None:
        set_peft_model_state_dict(wrapped, load_peft_weights(str(adapters), device="cpu"))
    return wrapped


def _checkpoint_activations(model: Any) -> None:
    # Newer transformers deprecate the second name, older ones have no other.
    enable = getattr(model, "activation_checkpointing_enable", None)
    (enable or model.gradient_checkpointing_enable)({"use_reentrant": False})
