"""TrainingConfig checks itself and makes its own flags."""

from __future__ import annotations

import argparse
from dataclasses import FrozenInstanceError, asdict
from typing import Any

import pytest

from crossalign.alignment.training_config import TrainingConfig, add_arguments


def test_defaults_are_those_of_the_contract() -> None:
    config = TrainingConfig()
    assert (config.layer, config.pooling, config.temperature) == (1, "mean", 0.05)
    assert (config.lm_weight, config.contrastive_weight) == (1.5, 1.0)
    assert (config.learning_rate, config.max_length, config.seed) == (1e-5, 512, 0)
    assert config.device == "auto"
    with pytest.raises(FrozenInstanceError):
        config.layer = 2  # type: ignore[misc]


def test_flags_and_fields_agree() -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    assert vars(parser.parse_args([])) == asdict(TrainingConfig())
    flags = ["--layer", "-1", "--chunk-size", "8", "--symmetric", "--learning-rate", "3e-4"]
    flags += ["--pooling", "last"]
    given = TrainingConfig(**vars(parser.parse_args(flags)))
    assert given == TrainingConfig(
        layer=-1, chunk_size=8, symmetric=True, learning_rate=3e-4, pooling="last"
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pooling": "first"}, "pooling must be one of mean, last, max, got 'first'"),
        ({"temperature": 0.0}, "temperature must be above 0, got 0.0"),
        ({"temperature": float("nan")}, "temperature must be finite, got nan"),
        ({"learning_rate": -1.0}, "learning_rate must be above 0"),
        ({"learning_rate": float("inf")}, "learning_rate must be finite"),
        ({"lm_weight": -0.5}, "lm_weight must not be negative"),
        ({"contrastive_weight": -1.0}, "contrastive_weight must not be negative"),
        ({"contrastive_weight": 0.0, "lm_weight": 0.0}, "must not both be 0"),
        ({"hard_negative_weight": float("inf")}, "hard_negative_weight must be finite"),
        ({"batch_size": 1}, "batch_size must be at least 2, got 1"),
        ({"chunk_size": 0}, "chunk_size must be at least 1"),
        ({"lm_batch_size": 0}, "lm_batch_size must be at least 1"),
        ({"block_length": 1}, "block_length must be at least 2, got 1"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"max_length": 1}, "max_length must be at least 2"),
        ({"seed": -1}, "seed must lie in 0 to"),
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
        ({"steps": None}, "steps must be int, got None"),
        ({"temperature": "0.05"}, "temperature must be float, got '0.05'"),
        ({"symmetric": 1}, "symmetric must be bool, got 1"),
        ({"device": 0}, "device must be str, got 0"),
    ],
)
def test_wrong_type_is_an_error(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        TrainingConfig(**settings)
