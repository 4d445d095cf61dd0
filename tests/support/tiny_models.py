"""Tiny random causal language models of many architectures, and a tokenizer for them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

VOCAB_SIZE = 97
LAYERS = 3
HIDDEN = 32

_COMMON = {"vocab_size": VOCAB_SIZE, "bos_token_id": 1, "eos_token_id": 2}
# What the Llama family names alike.
_LLAMA_LIKE = {
    "hidden_size": HIDDEN,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
_WINDOWED = {**_LLAMA_LIKE, "sliding_window": 4}

# name -> config class of transformers, its arguments
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2Config", {"n_embd": HIDDEN, "n_layer": LAYERS, "n_head": 4, "n_positions": 64}),
    "gpt_neo": (
        "GPTNeoConfig",
        {
            "hidden_size": HIDDEN,
            "num_layers": LAYERS,
            "num_heads": 4,
            "attention_types": [[["global", "local", "global"], 1]],
            "window_size": 4,
            "max_position_embeddings": 64,
        },
    ),
    "xglm": (
        "XGLMConfig",
        {
            "d_model": HIDDEN,
            "num_layers": LAYERS,
            "ffn_dim": 48,
            "attention_heads": 4,
            "max_position_embeddings": 64,
        },
    ),
    "bloom": ("BloomConfig", {"hidden_size": HIDDEN, "n_layer": LAYERS, "n_head": 4}),
    "llama": ("LlamaConfig", _LLAMA_LIKE),
    "mistral": ("MistralConfig", _WINDOWED),
    "qwen3": ("Qwen3Config", {**_LLAMA_LIKE, "head_dim": 8}),
    "gemma": ("GemmaConfig", {**_LLAMA_LIKE, "head_dim": 8}),
    # Soft-capped, multiplied and divided logits, a head with a bias, a projection after the norm.
    "gemma2": ("Gemma2Config", {**_WINDOWED, "head_dim": 8, "final_logit_softcapping": 2.0}),
    "cohere2": ("Cohere2Config", {**_WINDOWED, "logit_scale": 0.25}),
    "granite": ("GraniteConfig", {**_LLAMA_LIKE, "logits_scaling": 8.0}),
    "phi": ("PhiConfig", {**_LLAMA_LIKE, "num_key_value_heads": 4}),
    "opt": (
        "OPTConfig",
        {
            "hidden_size": HIDDEN,
            "word_embed_proj_dim": 16,
            "do_layer_norm_before": False,
            "num_hidden_layers": LAYERS,
            "ffn_dim": 48,
            "num_attention_heads": 4,
            "max_position_embeddings": 64,
        },
    ),
}


def tiny_model(name: str, **overrides: Any) -> PreTrainedModel:
    """A random model in eval mode, its weights spread enough that no two layers look alike."""
    import transformers

    config_class, arguments = CONFIGS[name]
    config = getattr(transformers, config_class)(**{**_COMMON, **arguments, **overrides})
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
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
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

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


def starting_tokenizer(**options: Any) -> PreTrainedTokenizerFast:
    """tiny_tokenizer that puts <s> in front of every sentence, as those of many models do."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = tiny_tokenizer(**options)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return tokenizer
