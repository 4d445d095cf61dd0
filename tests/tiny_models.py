"""Tiny random causal language models of many architectures, and a tokenizer for them."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    Cohere2Config,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    GPTNeoConfig,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    PhiConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    XGLMConfig,
)

VOCAB_SIZE = 97
LAYERS = 3
HIDDEN = 32

# The names that the Llama family shares.
_LLAMA_LIKE = {
    "hidden_size": HIDDEN,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "vocab_size": VOCAB_SIZE,
    "pad_token_id": 0,
}
_GPT2_LIKE = {"n_embd": HIDDEN, "n_layer": LAYERS, "n_head": 4, "vocab_size": VOCAB_SIZE}

CONFIGS = {
    "gpt2": lambda: GPT2Config(**_GPT2_LIKE, n_positions=64),
    "gpt_neo": lambda: GPTNeoConfig(
        hidden_size=HIDDEN,
        num_layers=LAYERS,
        num_heads=4,
        attention_types=[[["global", "local", "global"], 1]],
        window_size=4,
        max_position_embeddings=64,
        vocab_size=VOCAB_SIZE,
    ),
    "xglm": lambda: XGLMConfig(
        d_model=HIDDEN,
        num_layers=LAYERS,
        ffn_dim=48,
        attention_heads=4,
        max_position_embeddings=64,
        vocab_size=VOCAB_SIZE,
    ),
    "bloom": lambda: BloomConfig(
        hidden_size=HIDDEN, n_layer=LAYERS, n_head=4, vocab_size=VOCAB_SIZE
    ),
    "llama": lambda: LlamaConfig(**_LLAMA_LIKE),
    "mistral": lambda: MistralConfig(**_LLAMA_LIKE, sliding_window=4),
    "qwen3": lambda: Qwen3Config(**_LLAMA_LIKE, head_dim=8),
    "gemma": lambda: GemmaConfig(**_LLAMA_LIKE, head_dim=8),
    # Soft-capped logits, sliding windows, multiplied or divided logits, a biased head, projections.
    "gemma2": lambda: Gemma2Config(**_LLAMA_LIKE, head_dim=8, sliding_window=4),
    "gemma3": lambda: Gemma3TextConfig(**_LLAMA_LIKE, head_dim=8, sliding_window=4),
    "cohere2": lambda: Cohere2Config(**_LLAMA_LIKE, sliding_window=4),
    "granite": lambda: GraniteConfig(**_LLAMA_LIKE, logits_scaling=8.0),
    "phi": lambda: PhiConfig(**{**_LLAMA_LIKE, "num_key_value_heads": 4}),
    "opt": lambda: OPTConfig(
        hidden_size=HIDDEN,
        word_embed_proj_dim=16,
        do_layer_norm_before=False,
        num_hidden_layers=LAYERS,
        ffn_dim=48,
        num_attention_heads=4,
        max_position_embeddings=64,
        vocab_size=VOCAB_SIZE,
    ),
}


def tiny_model(name: str, **overrides: Any) -> PreTrainedModel:
    """A random model in eval mode, its weights spread enough that no two layers look alike."""
    config = CONFIGS[name]()
    for key, value in overrides.items():
        setattr(config, key, value)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model.eval()


def tiny_batch(
    lengths: tuple[int, ...] = (7, 4, 1), side: str = "right", seed: int = 1
) -> dict[str, torch.Tensor]:
    """Random input_ids and attention_mask, padded on the given side."""
    generator = torch.Generator().manual_seed(seed)
    width = max(lengths)
    input_ids = torch.randint(3, VOCAB_SIZE, (len(lengths), width), generator=generator)
    columns = torch.arange(width).expand(len(lengths), width)
    column = columns if side == "right" else width - 1 - columns
    attention_mask = (column < torch.tensor(lengths)[:, None]).long()
    return {"input_ids": input_ids * attention_mask, "attention_mask": attention_mask}


def tiny_tokenizer(**options: Any) -> PreTrainedTokenizerFast:
    """One token per word "w3" ... "w96"; 0 = unknown. No padding token unless asked for."""
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2}
    vocabulary |= {f"w{index}": index for index in range(3, VOCAB_SIZE)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        **options,
    )
