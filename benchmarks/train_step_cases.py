"""The cases of bench_train_step: a model of random weights, and one batch."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.harness import Work


class Case(NamedTuple):
    """Sizes; a sentence has from shortest to longest tokens, uniformly, a text always as many."""

    name: str
    architecture: str
    blocks: int
    width: int
    heads: int
    vocabulary: int
    pairs: int
    shortest: int
    longest: int
    texts: int
    text_length: int
    dtype: str = "float32"
    layer: int = 1  # where sentences are pooled


# Llama: the one architecture that also runs in float64, which judges the results of float32.
CPU: dict[str, Any] = {
    **{"architecture": "llama", "blocks": 24, "width": 256, "heads": 4, "vocabulary": 8192},
    **{"pairs": 64, "texts": 2, "text_length": 128},
}
GPU: dict[str, Any] = {
    **{"architecture": "xglm", "blocks": 24, "width": 1024, "heads": 16, "vocabulary": 256_008},
    **{"text_length": 512, "dtype": "bfloat16"},
}
# Gemma 3 270M: 268 million weights, of which 168 million are the embeddings, tied to the head.
GEMMA: dict[str, Any] = {
    **{"architecture": "gemma3_text", "blocks": 18, "width": 640, "heads": 4},
    **{"vocabulary": 262_144, "layer": 13},
}
FEW: dict[str, Any] = {"pairs": 32, "texts": 4, "text_length": 64}
PRESETS: dict[str, list[Case]] = {
    "smoke": [Case("smoke", "llama", 3, 16, 2, 64, 4, 3, 6, 2, 8)],
    "cpu": [
        Case("64 pairs of 32 tokens", **CPU, shortest=32, longest=32),
        Case("64 pairs of 16 to 48 tokens", **CPU, shortest=16, longest=48),
    ],
    "gemma-cpu": [
        Case("32 pairs of 12 to 36 tokens", **GEMMA, **FEW, shortest=12, longest=36),
    ],
    "gpu": [
        Case("4 pairs of 512 tokens", **GPU, pairs=4, shortest=512, longest=512, texts=4),
        Case("512 pairs of 16 to 48 tokens", **GPU, pairs=512, shortest=16, longest=48, texts=8),
    ],
}
# Its attention is wider than its states, its feed-forward network narrower than others'.
_GEMMA_3 = {"head_dim": 256, "num_key_value_heads": 1, "intermediate_size": 2048}
Inputs = dict[str, Tensor]


class Batch(NamedTuple):
    source: Inputs
    target: Inputs
    lm: Inputs  # without padding


def make_model(case: Case, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """Random weights, the same in every dtype but for rounding to that of the case; no dropout."""
    from transformers import AutoConfig, AutoModelForCausalLM

    is_gemma = case.architecture == "gemma3_text"
    config = AutoConfig.for_model(
        case.architecture,
        vocab_size=case.vocabulary,
        hidden_size=case.width,
        num_hidden_layers=case.blocks,
        num_attention_heads=case.heads,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        # XGLM calls it ffn_dim; with Llama's three matrices both have 8 C^2 weights.
        ffn_dim=4 * case.width,
        **_GEMMA_3 if is_gemma else {"intermediate_size": 8 * case.width // 3},
        **dict.fromkeys(("dropout", "attention_dropout", "activation_dropout", "layerdrop"), 0.0),
    )
    torch.manual_seed(0)
    with device:
        model = AutoModelForCausalLM.from_config(config)
    return model.to(getattr(torch, case.dtype)).to(dtype).train()


def make_inputs(case: Case, device: torch.device) -> Batch:
    generator = torch.Generator().manual_seed(1)

    def tokens(rows: int, width: int) -> Tensor:
        return torch.randint(3, case.vocabulary, (rows, width), generator=generator)

    def sentences() -> Inputs:
        size = (case.pairs,)
        lengths = torch.randint(case.shortest, case.longest + 1, size, generator=generator)
        mask = (torch.arange(case.longest) < lengths[:, None]).long()
        ids = tokens(case.pairs, case.longest) * mask
        return {"input_ids": ids.to(device), "attention_mask": mask.to(device), "lengths": lengths}

    source, target = sentences(), sentences()
    ids = tokens(case.texts, case.text_length)
    # Labels on the CPU, as crossalign.align has them: counting them there spares a wait.
    lm = {"input_ids": ids.to(device), "attention_mask": torch.ones_like(ids).to(device)}
    return Batch(source, target, lm | {"labels": ids})


def least_work(case: Case, model: nn.Module) -> Work:
    """Products of the blocks that are needed, and of the head: six operations per weight and token,
    twelve per pair of positions and feature. Bytes: AdamW reads four values and writes three."""
    c = case.width
    block = 12 * c * c  # weights: 4 C^2 of attention, 8 C^2 of the feed-forward network
    if case.architecture == "gemma3_text":  # 2.5 C * C of attention in all, 3 * 2048 * C
        block = c * (2 * 4 * 256 + 2 * 256) + 3 * 2048 * c
    sentence_tokens = case.pairs * (case.shortest + case.longest)  # of both sides
    text_tokens = case.texts * case.text_length
    flops = sentence_tokens * case.layer * (6 * block + 12 * c * (case.shortest + case.longest) / 2)
    flops += text_tokens * case.blocks * (6 * block + 12 * c * case.text_length)
    flops += 6 * text_tokens * case.vocabulary * c
    weights = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    return Work(flops, 7 * weights)
