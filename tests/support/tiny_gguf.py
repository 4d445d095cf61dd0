"""A tiny Llama as a .gguf file, as llama.cpp's converter would write it."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

from torch import Tensor

CONTROL, NORMAL = 3, 1  # token types


def write_gguf(path: Path, model: Any, tokenizer: Any) -> None:
    """model: a LlamaForCausalLM with tied embeddings; tokenizer: byte-level BPE with a BOS."""
    gguf: Any = importlib.import_module("gguf")
    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    _add_tokenizer(writer, tokenizer)
    for name, weight in model.state_dict().items():
        if name != "lm_head.weight":  # tied
            writer.add_tensor(_gguf_name(name), _permuted(name, weight, config).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_tokenizer(writer: Any, tokenizer: Any) -> None:
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    special = set(tokenizer.all_special_ids)
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    # transformers gives a vocabulary of this kind the end of text of GPT-2, whatever is in it.
    ends = {tokenizer.eos_token: "<|endoftext|>"}
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([ends.get(token, token) for token, _ in vocabulary])
    writer.add_token_types([CONTROL if number in special else NORMAL for _, number in vocabulary])
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_add_bos_token(True)


def _gguf_name(name: str) -> str:
    name = name.removeprefix("model.")
    parts = {
        "embed_tokens": "token_embd",
        "layers.": "blk.",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "post_attention_layernorm": "ffn_norm",
        "input_layernorm": "attn_norm",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }
    for ours, theirs in parts.items():
        name = name.replace(ours, theirs)
    return "output_norm.weight" if name == "norm.weight" else name


def _permuted(name: str, weight: Tensor, config: Any) -> Tensor:
    """Rows of queries and keys in the order of llama.cpp's rotary embedding, which pairs
    neighbors where transformers pairs halves."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for part, count in heads.items():
        if part in name:
            split = weight.reshape(count, 2, -1, *weight.shape[1:])
            return split.transpose(1, 2).reshape(weight.shape).contiguous()
    return weight.contiguous()
