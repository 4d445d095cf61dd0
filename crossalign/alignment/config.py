"""The settings of an alignment run: one frozen dataclass that checks itself and makes its flags."""

from __future__ import annotations

import argparse
import math
import types
import typing
from dataclasses import dataclass, field, fields
from typing import Any

from crossalign.pooling.choices import CENTERS, POOL_TOKENS, POOLINGS

PRECISIONS = ("auto", "fp32", "bf16", "fp16")
ATTENTIONS = ("auto", "eager", "sdpa", "flash_attention_2")


def setting(default: Any, text: str, **flag: Any) -> Any:
    """A dataclass field that is also a command-line flag with this help."""
    return field(default=default, metadata={"flag": {"help": text, **flag}})


class _OneOrMore(argparse.Action):
    """A single value stays single, several become a tuple."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: Any = None) -> None:
        setattr(namespace, self.dest, values[0] if len(values) == 1 else tuple(values))


class Several(argparse.Action):
    """A tuple of one or more."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: Any = None) -> None:
        setattr(namespace, self.dest, tuple(values))


_SWITCH = {"action": argparse.BooleanOptionalAction}


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """What `align` and `crossalign align` do with a model and its data.

    Raises:
        TypeError: a setting of the wrong type.
        ValueError: a setting out of its range.
    """

    layer: int | tuple[int, ...] = setting(
        1,
        "block whose output is aligned: 0 = the embeddings, 1 = the first block, -1 = the last; "
        "several: the mean of their losses",
        nargs="+",
        action=_OneOrMore,
    )
    pooling: str = setting("mean", "how token vectors become a sentence vector", choices=POOLINGS)
    pool_tokens: str = setting(
        "all",
        "tokens that count in a sentence vector: all, or content = without the tokenizer's special "
        "tokens, such as the one it puts first",
        choices=POOL_TOKENS,
    )
    center: str = setting(
        "none",
        "mean that is subtracted from the sentence vectors before the loss: none, batch = of all "
        "vectors of the batch, side = of the sources and of the targets apart",
        choices=CENTERS,
    )
    temperature: float = setting(0.05, "divides the cosine similarities (dimensionless)")
    learn_temperature: bool = setting(
        False, "train the temperature too, from this value on and down to 0.01", **_SWITCH
    )
    contrastive_weight: float = setting(1.0, "weight of the contrastive loss")
    lm_weight: float = setting(1.5, "weight of the next-token loss; 0 leaves it out")
    symmetric: bool = setting(False, "contrast in both directions", **_SWITCH)
    hard_negative_weight: float = setting(
        0.0, "added to the logit of a pair's own hard negative, where pairs have one"
    )
    batch_size: int = setting(
        64,
        "pairs per step, over all ranks; all other pairs of a step are negatives",
        metavar="N",
    )
    chunk_size: int | None = setting(
        None,
        "sequences in one pass through the model: bounds memory, changes no gradient; "
        "None = the whole batch",
        metavar="N",
    )
    lm_batch_size: int | None = setting(
        None,
        "texts per step for the next-token loss, over all ranks; None = as many as pairs",
        metavar="N",
    )
    lm_chunk_size: int | None = setting(
        None, "texts (or blocks) in one pass through the model; None = chunk_size", metavar="N"
    )
    steps: int = setting(1000, "updates in all, which also sets the schedule", metavar="N")
    learning_rate: float = setting(1e-5, "peak learning rate of AdamW")
    max_length: int = setting(
        512, "tokens after which a text is cut, at most what the model has positions for"
    )
    block_length: int | None = setting(
        None,
        "tokens of a block into which several texts for the next-token loss are packed, at most "
        "what the model has positions for; None = a row for each text",
        metavar="N",
    )
    precision: str = setting(
        "auto",
        "arithmetic of the model; weights stay float32. auto = bf16 on a GPU, fp32 on a CPU",
        choices=PRECISIONS,
    )
    attention: str = setting(
        "auto", "attention implementation; auto = what the model comes with", choices=ATTENTIONS
    )
    gradient_checkpointing: bool = setting(
        False, "compute activations twice instead of holding them", **_SWITCH
    )
    lora_rank: int | None = setting(
        None,
        "train LoRA adapters of this rank in every linear layer, not the weights; None = the "
        "weights",
        metavar="N",
    )
    compile: bool = setting(False, "compile each block with torch.compile", **_SWITCH)
    pretraining_tokens: float | None = setting(
        None,
        "tokens the model was pre-trained on; metrics then say what share of them was used so far",
        metavar="N",
    )
    allow_untested: bool = setting(
        False, "run combinations that docs/parallelism.md calls untested", **_SWITCH
    )
    seed: int = setting(0, "seed of data order, items and dropout")
    device: str = setting("auto", "auto (a GPU if there is one), cpu, cuda, cuda:1, ...")

    @property
    def layers(self) -> tuple[int, ...]:
        """The aligned layers, also where there is one."""
        return self.layer if isinstance(self.layer, tuple) else (self.layer,)

    def __post_init__(self) -> None:
        check_types(self)
        choices = {"pooling": POOLINGS, "precision": PRECISIONS, "attention": ATTENTIONS}
        choices |= {"pool_tokens": POOL_TOKENS, "center": CENTERS}
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ValueError(
                    f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}"
                )
        if not self.layers or len(set(self.layers)) < len(self.layers):
            raise ValueError(f"layer must name each layer once, at least one, got {self.layer}")
        for name in ("temperature", "learning_rate", "pretraining_tokens"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be above 0, got {value}")
        for name in ("contrastive_weight", "lm_weight"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if self.contrastive_weight == 0 and self.lm_weight == 0:
            raise ValueError("contrastive_weight and lm_weight must not both be 0")
        lowest = {"batch_size": 2, "chunk_size": 1, "lm_batch_size": 1, "lm_chunk_size": 1}
        lowest |= {"steps": 1, "max_length": 2, "block_length": 2, "lora_rank": 1}
        check_lowest(self, lowest)
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed must lie in 0 to 2**63 - 1, got {self.seed}")


def add_arguments(parser: argparse.ArgumentParser, settings: type = TrainingConfig) -> None:
    """One flag per setting, in the order of the dataclass."""
    hints = typing.get_type_hints(settings)
    for each in fields(settings):
        flag = dict(each.metadata["flag"])
        if hints[each.name] is not bool:
            flag["type"] = _value_type(hints[each.name])
        parser.add_argument(f"--{each.name.replace('_', '-')}", default=each.default, **flag)


def check_types(settings: Any) -> None:
    """Raises TypeError unless every field of a settings dataclass has its declared type."""
    for name, hint in typing.get_type_hints(type(settings)).items():
        value = getattr(settings, name)
        kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
        if value is None and type(None) in kinds:
            continue
        takes_several = any(typing.get_origin(kind) is tuple for kind in kinds)
        if not takes_several and isinstance(value, tuple):
            raise TypeError(f"{name} must be one value, got {value!r}")
        if all(typing.get_origin(kind) is tuple for kind in kinds) and not isinstance(value, tuple):
            raise TypeError(f"{name} must be a tuple, got {value!r}")
        for each in value if isinstance(value, tuple) else (value,):
            _check_type(name, each, _value_type(hint))


def check_lowest(settings: Any, lowest: dict[str, int]) -> None:
    """Raises ValueError where a setting that is not None lies below its lowest value."""
    for name, low in lowest.items():
        value = getattr(settings, name)
        if value is not None and value < low:
            raise ValueError(f"{name} must be at least {low}, got {value}")


def _value_type(hint: Any) -> type:
    """int for int, int | None, tuple[int, ...] and int | tuple[int, ...]."""
    kinds = [kind for kind in typing.get_args(hint) if kind is not type(None)]
    return _value_type(kinds[0]) if kinds else typing.cast(type, hint)


def _check_type(name: str, value: Any, kind: type) -> None:
    fits = isinstance(value, (int, float) if kind is float else kind)
    if not fits or (isinstance(value, bool) and kind is not bool):
        raise TypeError(f"{name} must be {kind.__name__}, got {value!r}")
    if kind is float and not math.isfinite(value):
        raise ValueError(f"{name} must be finite, got {value}")
