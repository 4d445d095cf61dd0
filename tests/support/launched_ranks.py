"""Training runs on several ranks, as a launcher would start them."""

from __future__ import annotations

import contextlib
import itertools
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from crossalign.alignment.run_config import RunConfig
from crossalign.alignment.train import AlignmentRun, Record
from crossalign.data.pairs import Pair
from tests.support.tiny_models import tiny_model, tiny_tokenizer
from tests.support.training import make_config, make_pairs

Result = tuple[list[Record], dict[str, Tensor]]


PAIRS = make_pairs(7, negatives=True)


# Whole and in chunks; five pairs and three texts, so that ranks have unequal shares.
SETTINGS: dict[str, dict[str, Any]] = {
    "whole": {},
    "chunks": {"chunk_size": 2, "lm_chunk_size": 1},
    "two layers, no text": {"layer": (1, 2), "lm_weight": 0.0, "symmetric": True, "chunk_size": 1},
    "one text for all": {"lm_batch_size": 1, "chunk_size": 1},
    "adapters": {"lora_rank": 2, "gradient_checkpointing": True},
    "two pairs for all": {"batch_size": 2, "lm_batch_size": 2},
    "two pairs for all, in chunks": {"batch_size": 2, "chunk_size": 1},
}


def train(case: str, name: str = "gpt2", **settings: Any) -> Result:
    """Two steps in float64 of a fresh tiny model."""
    model = tiny_model(name, **_NO_DROPOUT.get(name, {})).double()
    defaults = {"steps": 2, "batch_size": 5, "lm_batch_size": 3, "hard_negative_weight": 0.5}
    config = make_config(**{**defaults, **SETTINGS[case], **settings})
    torch.set_default_dtype(torch.float64)  # of adapters too
    try:
        run = AlignmentRun(model, tiny_tokenizer(), PAIRS, config)
        records = list(run.steps(progress=False))
    finally:
        torch.set_default_dtype(torch.float32)
    return records, whole_weights(run)


def whole_weights(run: AlignmentRun) -> dict[str, Tensor]:
    """Under FSDP2 only the main rank has them."""
    weights = run.engine.weights(run.language_model)
    weights = run.language_model.state_dict() if weights is None else weights
    return {key: value.clone() for key, value in weights.items()}


_NO_DROPOUT = {"gpt2": dict.fromkeys(("attn_pdrop", "resid_pdrop", "embd_pdrop"), 0.0)}


def launch(rank: int, world_size: int, strategy: str) -> None:
    """The environment that torchrun, or accelerate launch, gives a rank."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500", "ACCELERATE_USE_CPU": "true"}
    os.environ["ACCELERATE_USE_FSDP"] = str(strategy == "fsdp2").lower()
    os.environ["FSDP_VERSION"] = "2"


def held_out(directory: Path) -> RunConfig:
    return RunConfig(evaluate_pairs=(str(directory / "pairs.tsv"),), evaluate_every=1)


def some_steps(run: AlignmentRun, count: int) -> Result:
    """The next so many, and the weights then."""
    with contextlib.closing(run.steps(progress=False)) as steps:
        records = list(itertools.islice(steps, count))
    return records, whole_weights(run)


# Of two words each: the paper's code averages the ranks' means of the next-token loss, so their
# texts must be of equal length for the comparison.
ALIKE = [Pair(f"w{3 + k} w{13 + k}", f"w{43 + k} w{63 + k}") for k in range(8)]
