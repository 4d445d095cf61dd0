"""What cannot work together is refused; what is not tested must be asked for."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest

from crossalign.alignment.config import TrainingConfig
from crossalign.alignment.engines.combinations import check_combination
from crossalign.alignment.engines.launch import launched_strategy

REFUSED = [
    ({}, "fsdp1", "cpu", "set fsdp_version: 2"),
    ({"device": "cuda:1"}, "ddp", "cuda", "device must be auto, cpu or cuda on several ranks"),
    ({"learn_temperature": True}, "fsdp2", "cpu", "learn_temperature does not go with FSDP2"),
    ({"precision": "fp16"}, "fsdp2", "cuda", "fp16 does not go with FSDP2"),
    ({"attention": "flash_attention_2"}, "single", "cpu", "needs a GPU and precision bf16"),
    (
        {"attention": "flash_attention_2", "precision": "fp32"},
        *("single", "cuda", "needs a GPU and precision bf16"),
    ),
]


UNTESTED = [
    ({"compile": True}, "ddp", "compile on several ranks"),
    ({"compile": True, "gradient_checkpointing": True}, "single", "compile with gradient_check"),
    ({"compile": True, "chunk_size": 8}, "single", "compile with chunks"),
]


@pytest.mark.parametrize(("settings", "strategy", "device", "reason"), REFUSED)
def test_what_does_not_work_is_refused(
    settings: dict[str, Any], strategy: Any, device: str, reason: str
) -> None:
    config = TrainingConfig(**settings, allow_untested=True)
    with pytest.raises(ValueError, match=reason):
        check_combination(config, strategy, device)


@pytest.mark.parametrize(("settings", "strategy", "reason"), UNTESTED)
def test_what_is_not_tested_must_be_asked_for(
    settings: dict[str, Any], strategy: Any, reason: str
) -> None:
    with pytest.raises(ValueError, match=f"{reason}.* is not tested .*--allow-untested runs it"):
        check_combination(TrainingConfig(**settings), strategy, "cpu")
    check_combination(TrainingConfig(**settings, allow_untested=True), strategy, "cpu")


def test_offloading_and_flash_attention_ask_for_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FSDP_OFFLOAD_PARAMS", "true")
    with pytest.raises(ValueError, match="fsdp_offload_params is not tested"):
        check_combination(TrainingConfig(), "fsdp2", "cuda")
    flash = TrainingConfig(attention="flash_attention_2", precision="bf16")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="flash_attention_2 needs flash-attn"):
        check_combination(flash, "single", "cuda")
    with pytest.raises(ValueError, match="lora_rank needs peft"):
        check_combination(TrainingConfig(lora_rank=2), "single", "cpu")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    check_combination(flash, "single", "cuda")
    packed = TrainingConfig(attention="flash_attention_2", precision="bf16", block_length=64)
    with pytest.raises(ValueError, match="takes no mask of packed texts"):
        check_combination(packed, "single", "cuda")


@pytest.mark.parametrize(
    ("environment", "strategy"),
    [
        ({}, "single"),
        ({"WORLD_SIZE": "1"}, "single"),
        ({"WORLD_SIZE": "2"}, "ddp"),
        ({"WORLD_SIZE": "2", "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}, "fsdp2"),
        ({"WORLD_SIZE": "2", "ACCELERATE_USE_FSDP": "true"}, "fsdp1"),
        ({"WORLD_SIZE": "2", "ACCELERATE_USE_DEEPSPEED": "true"}, "deepspeed"),
    ],
)
def test_the_launcher_decides(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], strategy: str
) -> None:
    for name in ("WORLD_SIZE", "ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED", "FSDP_VERSION"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert launched_strategy() == strategy
