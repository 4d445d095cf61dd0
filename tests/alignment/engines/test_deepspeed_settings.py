"""Which of the launcher's DeepSpeed settings are taken, and the message for each of the others."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from crossalign.alignment.config import TrainingConfig
from crossalign.alignment.engines.combinations import check_combination
from crossalign.alignment.engines.deepspeed_settings import deepspeed_settings

CONTRADICTIONS: list[tuple[dict[str, Any], str]] = [
    ({"zero_optimization": {"stage": 1}}, "zero_optimization.stage must be 2 or 3, got 1"),
    (
        {"zero_optimization": {"stage": 2, "round_robin_gradients": True}},
        "zero_optimization.round_robin_gradients must be false",
    ),
    ({"optimizer": {"type": "AdamW"}}, "optimizer must be left out"),
    ({"scheduler": {"type": "WarmupLR"}}, "scheduler must be left out"),
    *(({name: {"enabled": True}}, f"{name}.enabled must be false") for name in ("fp16", "bf16")),
    *(({name: {"enabled": True}}, f"{name}.enabled") for name in ("amp", "torch_autocast")),
    ({"communication_data_type": "bf16"}, "communication_data_type must be fp32 .*, got 'bf16'"),
    ({"gradient_accumulation_steps": 4}, "gradient_accumulation_steps must be 1 .*, got 4"),
    ({"gradient_clipping": 0.5}, "gradient_clipping must be 1.0 or left out, got 0.5"),
    ({"train_batch_size": 64}, "train_batch_size must be auto .*: --batch-size decides"),
    ({"train_micro_batch_size_per_gpu": 2}, "train_micro_batch_size_per_gpu must be auto"),
]
UNTESTED: list[tuple[dict[str, Any], str]] = [
    ({"flops_profiler": {"enabled": True}}, "flops_profiler"),
    ({"zero_quantized_weights": True}, "zero_optimization.zero_quantized_weights"),
    ({"offload_param": {"device": "nvme"}}, "zero_optimization.offload_param.device nvme"),
    (
        {"offload_optimizer": {"device": "cpu", "ratio": 0.5}},
        "zero_optimization.offload_optimizer.ratio",
    ),
]


@pytest.fixture
def write_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    def write(**settings: Any) -> None:
        path = tmp_path / "deepspeed.json"
        path.write_text(json.dumps({"zero_optimization": {"stage": 3}, **settings}))
        monkeypatch.setenv("ACCELERATE_DEEPSPEED_CONFIG_FILE", str(path))

    return write


@pytest.mark.parametrize(("settings", "reason"), CONTRADICTIONS)
def test_settings_that_contradict_the_trainers_are_refused(
    write_settings: Callable[..., None], settings: dict[str, Any], reason: str
) -> None:
    write_settings(**settings)
    with pytest.raises(ValueError, match=f"align: DeepSpeed's {reason}"):
        deepspeed_settings(TrainingConfig(allow_untested=True))


@pytest.mark.parametrize(("settings", "name"), UNTESTED)
def test_settings_that_no_test_covers_must_be_asked_for(
    write_settings: Callable[..., None], settings: dict[str, Any], name: str
) -> None:
    if name.startswith("zero"):
        settings = {"zero_optimization": {"stage": 3, **settings}}
    write_settings(**settings)
    with pytest.raises(ValueError, match=f"{name} is not tested .*--allow-untested runs it"):
        deepspeed_settings(TrainingConfig())
    assert deepspeed_settings(TrainingConfig(allow_untested=True)).items() >= settings.items()


def test_what_is_left_open_is_the_trainers(write_settings: Callable[..., None]) -> None:
    """A file made for Hugging Face's trainer, less its optimizer."""
    sizes = {"reduce_bucket_size": "auto", "sub_group_size": 1e9}
    opened = ("train_batch_size", "gradient_clipping", "gradient_accumulation_steps")
    write_settings(
        zero_optimization={"stage": 2, **sizes},
        fp16={"enabled": "auto", "initial_scale_power": 16},
        bf16={"enabled": False},
        **dict.fromkeys((*opened, "train_micro_batch_size_per_gpu"), "auto"),
    )
    settings = deepspeed_settings(TrainingConfig())
    assert settings["zero_optimization"] == {"stage": 2, "sub_group_size": 1e9}
    assert settings["gradient_clipping"] == 1.0 and not settings["fp16"]["enabled"]
    assert "auto" not in settings.values() and "train_batch_size" not in settings


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"learn_temperature": True}, "learn_temperature does not go with DeepSpeed"),
        ({"precision": "fp16"}, "fp16 does not go with DeepSpeed"),
    ],
)
def test_what_does_not_work_is_refused(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], reason: str
) -> None:
    config = TrainingConfig(**settings, allow_untested=True)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    with pytest.raises(ValueError, match=reason):
        check_combination(config, "deepspeed", "cuda")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="not installed: pip install 'crossalign\\[deepspeed\\]'"):
        check_combination(TrainingConfig(), "deepspeed", "cuda")
