"""TrainingConfig checks itself and makes its own flags."""

from __future__ import annotations

import argparse
from dataclasses import FrozenInstanceError, asdict, fields
from typing import Any

import pytest

from crossalign.alignment.config import TrainingConfig
from crossalign.alignment.run_config import RunConfig
from crossalign.settings import add_flags


def test_defaults_are_those_of_the_contract() -> None:
    config = TrainingConfig()
    assert (config.layer, config.pooling, config.temperature) == (1, "mean", 0.05)
    assert (config.lm_weight, config.contrastive_weight) == (1.5, 1.0)
    assert (config.learning_rate, config.max_length, config.seed) == (1e-5, 512, 0)
    assert config.device == "auto"
    assert config.layers == (1,)
    assert TrainingConfig(layer=(2, -1)).layers == (2, -1)
    assert len(fields(TrainingConfig)) <= 33  # a setting more must be worth it
    with pytest.raises(FrozenInstanceError):
        config.layer = 2  # type: ignore[misc]


def test_flags_and_fields_agree() -> None:
    parser = argparse.ArgumentParser()
    add_flags(parser, TrainingConfig)
    assert vars(parser.parse_args([])) == asdict(TrainingConfig())
    flags = ["--layer", "-1", "--chunk-size", "8", "--symmetric", "--learning-rate", "3e-4"]
    flags += ["--pooling", "last"]
    given = TrainingConfig(**vars(parser.parse_args(flags)))
    assert given == TrainingConfig(
        layer=-1, chunk_size=8, symmetric=True, learning_rate=3e-4, pooling="last"
    )
    several = parser.parse_args(["--layer", "1", "-1", "--no-compile", "--precision", "fp16"])
    assert TrainingConfig(**vars(several)) == TrainingConfig(layer=(1, -1), precision="fp16")


def test_flags_of_the_run_and_its_fields_agree() -> None:
    parser = argparse.ArgumentParser()
    add_flags(parser, RunConfig)
    assert vars(parser.parse_args([])) == asdict(RunConfig())
    flags = ["--evaluate-pairs", "a", "b", "--evaluate-every", "5", "--trackers", "tensorboard"]
    assert RunConfig(**vars(parser.parse_args(flags))) == RunConfig(
        evaluate_pairs=("a", "b"), evaluate_every=5, trackers=("tensorboard",)
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pooling": "first"}, "pooling must be one of mean, last, max, got 'first'"),
        ({"temperature": 0.0}, "temperature must be above 0, got 0.0"),
        ({"temperature": float("nan")}, "temperature must be finite, got nan"),
        (
            {"temperature": 0.009, "learn_temperature": True},
            "temperature must be at least 0.01 with learn_temperature, .* got 0.009",
        ),
        ({"directions": ("key_to_key",)}, "directions must hold query_to_key, got key_to_key"),
        ({"directions": ("query_to_key", "up")}, "directions must be one of .* got 'up'"),
        ({"directions": ("query_to_key", "key_to_key"), "symmetric": True}, "symmetric and direct"),
        ({"label_smoothing": 1.0}, "label_smoothing must be below 1, got 1.0"),
        ({"debias": -0.1}, "debias must be at least 0, got -0.1"),
        ({"debias": 1.0}, "debias must be below 1, got 1.0"),
        ({"learning_rate": -1.0}, "learning_rate must be above 0"),
        ({"learning_rate": float("inf")}, "learning_rate must be finite"),
        ({"lm_weight": -0.5}, "lm_weight must be at least 0, got -0.5"),
        ({"contrastive_weight": -1.0}, "contrastive_weight must be at least 0"),
        ({"contrastive_weight": 0.0, "lm_weight": 0.0}, "must not both be 0"),
        ({"hard_negative_weight": float("inf")}, "hard_negative_weight must be finite"),
        ({"batch_size": 1}, "batch_size must be at least 2, got 1"),
        ({"chunk_size": 0}, "chunk_size must be at least 1"),
        ({"lm_batch_size": 0}, "lm_batch_size must be at least 1"),
        ({"block_length": 1}, "block_length must be at least 2, got 1"),
        ({"lm_chunk_size": 0}, "lm_chunk_size must be at least 1"),
        ({"lora_rank": 0}, "lora_rank must be at least 1"),
        ({"layer": ()}, r"layer must name at least one layer, got \(\)"),
        ({"layer": (1, 1)}, "layer must name each value once, got 1 1"),
        ({"precision": "half"}, "precision must be one of auto, fp32, bf16, fp16, got 'half'"),
        ({"attention": "flash"}, "attention must be one of auto, eager, sdpa, flash_attention_2"),
        ({"pretraining_tokens": 0.0}, "pretraining_tokens must be above 0, got 0.0"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"max_length": 1}, "max_length must be at least 2"),
        ({"seed": 2**63}, r"seed must be below 2\*\*63"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
    ],
)
def test_value_out_of_range_is_an_error(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainingConfig(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layer": 1.0}, "layer must be int, got 1.0"),
        ({"layer": True}, "layer must be int, got True"),
        ({"layer": (1, "2")}, "layer must be int, got '2'"),
        ({"layer": [1]}, r"layer must be int, got \[1\]"),
        ({"seed": (1,)}, r"seed must be one value, got \(1,\)"),
        ({"steps": None}, "steps must be int, got None"),
        ({"temperature": "0.05"}, "temperature must be float, got '0.05'"),
        ({"symmetric": 1}, "symmetric must be bool, got 1"),
        ({"device": 0}, "device must be str, got 0"),
    ],
)
def test_wrong_type_is_an_error(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        TrainingConfig(**settings)
