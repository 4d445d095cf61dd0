"""Which ways to run are known to work: one function refuses the others and says why.

docs/parallelism.md has the table of what is tested.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from typing import Literal

from crossalign.alignment.config import TrainingConfig

Strategy = Literal["single", "ddp", "fsdp1", "fsdp2", "deepspeed"]


def check_combination(config: TrainingConfig, strategy: Strategy, device_type: str) -> None:
    """Raises ValueError, with the reason and the way out, for what does not work together, and
    unless config.allow_untested for what no test covers."""
    for reason in _impossible(config, strategy, device_type):
        raise ValueError(f"align: {reason}")
    if not config.allow_untested:
        for reason in _untested(config, strategy):
            raise ValueError(
                f"align: {reason} is not tested (docs/parallelism.md); --allow-untested runs it"
            )


def _impossible(config: TrainingConfig, strategy: Strategy, device_type: str) -> Iterator[str]:
    if strategy == "fsdp1":
        yield (
            "FSDP version 1 is not supported: it flattens the parameters of blocks that only the "
            "next-token loss runs; set fsdp_version: 2 in the file for accelerate launch"
        )
    if strategy == "deepspeed" and importlib.util.find_spec("deepspeed") is None:
        yield "DeepSpeed is not installed: pip install 'crossalign[deepspeed]'"
    if strategy != "single" and config.device not in ("auto", "cpu", "cuda"):
        yield f"device must be auto, cpu or cuda on several ranks, got {config.device!r}"
    if strategy == "fsdp2" and config.learn_temperature:
        yield "learn_temperature does not go with FSDP2, which shards no scalar; use DDP"
    if strategy == "deepspeed" and config.learn_temperature:
        yield (
            "learn_temperature does not go with DeepSpeed, which averages no gradient that comes "
            "from outside of a pass; use DDP"
        )
    if strategy == "deepspeed" and config.precision == "fp16":
        yield "fp16 does not go with DeepSpeed: a scaler would see one rank's part; use bf16"
    if strategy == "fsdp2" and config.precision == "fp16":
        yield "fp16 does not go with FSDP2: its scaler would see one shard's overflow; use bf16"
    if config.attention == "flash_attention_2":
        if device_type != "cuda" or config.precision == "fp32":
            yield "flash_attention_2 needs a GPU and precision bf16 or fp16; use attention sdpa"
        if importlib.util.find_spec("flash_attn") is None:
            yield "flash_attention_2 needs flash-attn: pip install 'crossalign[flash]'"
        if config.block_length is not None:
            yield "flash_attention_2 takes no mask of packed texts; use attention sdpa"
    if config.lora_rank is not None and importlib.util.find_spec("peft") is None:
        yield "lora_rank needs peft: pip install 'crossalign[train]'"


def _untested(config: TrainingConfig, strategy: Strategy) -> Iterator[str]:
    if strategy == "fsdp2" and os.environ.get("FSDP_OFFLOAD_PARAMS", "false") == "true":
        yield "fsdp_offload_params"
    if config.freeze and strategy in ("fsdp2", "deepspeed"):
        yield "freeze with sharded weights"
    if config.compile and strategy != "single":
        yield "compile on several ranks"
    if config.compile and config.gradient_checkpointing:
        yield "compile with gradient_checkpointing"
    if config.compile and (config.chunk_size or config.lm_chunk_size):
        yield "compile with chunks"
