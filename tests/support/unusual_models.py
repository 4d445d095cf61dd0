"""Tiny random models whose states are no plain tuple of one (B, T, C) after every block."""

from __future__ import annotations

from typing import Any

import torch
import transformers

from tests.support.tiny_models import HIDDEN, VOCAB_SIZE

SIZES: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": HIDDEN,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
BLOCKS = 4


def gemma3n() -> Any:
    config = transformers.Gemma3nTextConfig(
        **SIZES,
        num_hidden_layers=BLOCKS,
        head_dim=8,
        vocab_size_per_layer_input=VOCAB_SIZE,
        hidden_size_per_layer_input=8,
        laurel_rank=4,
        num_kv_shared_layers=0,
        altup_num_inputs=3,
        altup_active_idx=1,
        layer_types=["full_attention"] * BLOCKS,
        activation_sparsity_pattern=[0.0] * BLOCKS,
    )
    torch.manual_seed(0)
    return transformers.Gemma3nForCausalLM(config).eval()


def mllama(cross: list[int]) -> Any:
    config = transformers.models.mllama.configuration_mllama.MllamaTextConfig(
        **{**SIZES, "pad_token_id": 0},
        num_hidden_layers=BLOCKS,
        cross_attention_layers=cross,
        rope_scaling=None,  # type: ignore[call-arg]
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    )
    torch.manual_seed(0)
    return transformers.MllamaForCausalLM(config).eval()
