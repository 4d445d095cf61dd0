"""The settings of an alignment run: one frozen dataclass that checks itself and makes its flags."""

from __future__ import annotations

import argparse
import math
import typing
from dataclasses import dataclass, field, fields
from typing import Any

POOLINGS = ("mean", "last", "max")


def _setting(default: Any, text: str, **flag: Any) -> Any:
    return field(default=default, metadata={"flag": {"help": text, **flag}})


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """What `align` and `crossalign align` do with a model and its data.

    Raises:
        TypeError: a setting of the wrong type.
        ValueError: a setting out of its range.
    """

    layer: int = _setting(
        1, "block whose output is aligned: 0 = the embeddings, 1 = the first block, -1 = the last"
    )
    pooling: str = _setting("mean", "how token vectors become a sentence vector", choices=POOLINGS)
    temperature: float = _setting(0.05, "divides the cosine similarities (dimensionless)")
    contrastive_weight: float = _setting(1.0, "weight of the contrastive loss")
    lm_weight: float = _setting(1.5, "weight of the next-token loss; 0 leaves it out")
    symmetric: bool = _setting(
        False, "contrast in both directions", action=argparse.BooleanOptionalAction
    )
    hard_negative_weight: float = _setting(
        0.0, "added to the logit of a pair's own hard negative, where pairs have one"
    )
    batch_size: int = _setting(
        64, "pairs per step; all other pairs of a step are negatives", metavar="N"
    )
    chunk_size: int | None = _setting(
        None,
        "sequences in one pass through the model: bounds memory, changes no gradient; "
        "None = the whole batch",
        metavar="N",
    )
    lm_batch_size: int | None = _setting(
        None, "texts per step for the next-token loss; None = as many as pairs", metavar="N"
    )
    steps: int = _setting(1000, "updates in all, which also sets the schedule", metavar="N")
    learning_rate: float = _setting(1e-5, "peak learning rate of AdamW")
    max_length: int = _setting(
        512, "tokens after which a text is cut, at most what the model has positions for"
    )
    block_length: int | None = _setting(
        None,
        "tokens of a block into which several texts for the next-token loss are packed, at most "
        "what the model has positions for; None = a row for each text",
        metavar="N",
    )
    seed: int = _setting(0, "seed of data order, items and dropout")
    device: str = _setting("auto", "auto (a GPU if there is one), cpu, cuda, cuda:1, ...")

    def __post_init__(self) -> None:
        for name, kind in typing.get_type_hints(TrainingConfig).items():
            _check_type(name, getattr(self, name), kind)
        if self.pooling not in POOLINGS:
            raise ValueError(f"pooling must be one of {', '.join(POOLINGS)}, got {self.pooling!r}")
        for name in ("temperature", "learning_rate"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        for name in ("contrastive_weight", "lm_weight"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if self.contrastive_weight == 0 and self.lm_weight == 0:
            raise ValueError("contrastive_weight and lm_weight must not both be 0")
        lowest = {"batch_size": 2, "chunk_size": 1, "lm_batch_size": 1, "steps": 1}
        lowest |= {"max_length": 2, "block_length": 2}
        for name, low in lowest.items():
            value = getattr(self, name)
            if value is not None and value < low:
                raise ValueError(f"{name} must be at least {low}, got {value}")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed must lie in 0 to 2**63 - 1, got {self.seed}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """One flag per setting, in the order of the dataclass."""
    hints = typing.get_type_hints(TrainingConfig)
    for setting in fields(TrainingConfig):
        flag = dict(setting.metadata["flag"])
        if hints[setting.name] is not bool:
            flag["type"] = _value_type(hints[setting.name])
        parser.add_argument(f"--{setting.name.replace('_', '-')}", default=setting.default, **flag)


def _value_type(hint: Any) -> type:
    """int for int and int | None, ..."""
    kinds = [kind for kind in (typing.get_args(hint) or (hint,)) if kind is not type(None)]
    return typing.cast(type, kinds[0])


def _check_type(name: str, value: Any, hint: Any) -> None:
    if value is None and type(None) in typing.get_args(hint):
        return
    kind = _value_type(hint)
    fits = isinstance(value, (int, float) if kind is float else kind)
    if not fits or (isinstance(value, bool) and kind is not bool):
        raise TypeError(f"{name} must be {kind.__name__}, got {value!r}")
    if kind is float and not math.isfinite(value):
        raise ValueError(f"{name} must be finite, got {value}")
