"""Several ranks, as a launcher would start them, against one process: the very same update."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from process_group import run_ranks
from test_train import make_config, make_pairs
from tiny_models import tiny_model, tiny_tokenizer
from torch import Tensor

from crossalign.alignment.train import AlignmentRun, Record

Result = tuple[list[Record], dict[str, Tensor]]
PAIRS = make_pairs(7, negatives=True)
# Whole and in chunks; five pairs and three texts, so that ranks have unequal shares.
SETTINGS: dict[str, dict[str, Any]] = {
    "whole": {},
    "chunks": {"chunk_size": 2, "lm_chunk_size": 1},
    "two layers, no text": {"layer": (1, 2), "lm_weight": 0.0, "symmetric": True, "chunk_size": 1},
    "one text for all": {"lm_batch_size": 1, "chunk_size": 1},
}


def train(case: str, name: str = "gpt2", **settings: Any) -> Result:
    """Two steps in float64 of a fresh tiny model."""
    model = tiny_model(name, **_NO_DROPOUT.get(name, {})).double()
    defaults = {"steps": 2, "batch_size": 5, "lm_batch_size": 3, "hard_negative_weight": 0.5}
    config = make_config(**{**defaults, **SETTINGS[case], **settings})
    run = AlignmentRun(model, tiny_tokenizer(), PAIRS, config)
    records = list(run.steps(progress=False))
    weights = run.engine.weights(run.language_model) or model.state_dict()
    return records, {key: value.clone() for key, value in weights.items()}


_NO_DROPOUT = {"gpt2": dict.fromkeys(("attn_pdrop", "resid_pdrop", "embd_pdrop"), 0.0)}


def launch(rank: int, world_size: int, strategy: str) -> None:
    """The environment that torchrun, or accelerate launch, gives a rank."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500", "ACCELERATE_USE_CPU": "true"}
    os.environ["ACCELERATE_USE_FSDP"] = str(strategy == "fsdp2").lower()
    os.environ["FSDP_VERSION"] = "2"


def train_all(rank: int, world_size: int) -> dict[tuple[str, str], Result]:
    results = {}
    for strategy in ("ddp", "fsdp2"):
        launch(rank, world_size, strategy)
        for case in SETTINGS:
            results[strategy, case] = train(case)
    return results


def assert_same_run(ours: Result, expected: Result) -> None:
    for mine, other in zip(ours[0], expected[0], strict=True):
        mine, other = ({k: v for k, v in each.items() if k != "seconds"} for each in (mine, other))
        assert mine == pytest.approx(other, rel=1e-6)
    assert ours[1].keys() == expected[1].keys()
    for name, weight in expected[1].items():
        torch.testing.assert_close(ours[1][name], weight, rtol=0, atol=1e-8, msg=name)


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_make_the_update_of_one_process(world_size: int) -> None:
    """Losses, accuracy and weights; with 3 ranks one has no text."""
    by_rank = run_ranks(train_all, world_size, world_size, timeout_s=200)
    for case in SETTINGS:
        expected = train(case)
        for strategy in ("ddp", "fsdp2"):
            for results in by_rank[: None if strategy == "ddp" else 1]:
                assert_same_run(results[strategy, case], expected)
