"""Small training runs in memory: pairs, settings, records and weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from crossalign.alignment.checkpoint import Checkpoints
from crossalign.alignment.config import TrainingConfig
from crossalign.alignment.train import AlignmentRun, Record, align
from crossalign.data.pairs import Pair
from tests.support.tiny_models import tiny_model, tiny_tokenizer

CPU = torch.device("cpu")


NO_DROPOUT = {"attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0}


DROPOUT = dict.fromkeys(NO_DROPOUT, 0.1)


def make_pairs(count: int, negatives: bool = False) -> list[Pair]:
    """Word w<k> translates to word w<k + 40>; sentences of one to three words."""
    pairs = []
    for index in range(count):
        words = [3 + (index * step + step) % 37 for step in (1, 5, 11)][: 1 + index % 3]
        source = " ".join(f"w{word}" for word in words)
        target = " ".join(f"w{word + 40}" for word in words)
        pairs.append(Pair(source, target, negative=f"w{80 + index % 15}" if negatives else ""))
    return pairs


def make_config(**settings: Any) -> TrainingConfig:
    defaults = {"batch_size": 8, "steps": 3, "learning_rate": 1e-3, "device": "cpu"}
    return TrainingConfig(**{**defaults, **settings})


def run_align(
    pairs: Sequence[Pair], config: TrainingConfig, name: str = "llama", **options: Any
) -> tuple[list[Record], dict[str, torch.Tensor]]:
    """The records and the trained weights of a fresh tiny model, whose weights have `dtype`."""
    model = tiny_model(name, **options.pop("model_options", {})).to(options.pop("dtype", None))
    records: list[Record] = []
    align(model, tiny_tokenizer(), pairs, config, on_step=records.append, **options)
    return records, model.state_dict()


def load_last(directory: Path, run: AlignmentRun) -> None:
    """The state of the newest checkpoint; the run's model must have its weights."""
    checkpoints = Checkpoints(directory, is_main=run.engine.is_main)
    step = checkpoints.last()
    assert step is not None
    checkpoints.load(run, step)


def without_seconds(records: Sequence[Record]) -> list[Record]:
    return [{key: value for key, value in r.items() if key != "seconds"} for r in records]
