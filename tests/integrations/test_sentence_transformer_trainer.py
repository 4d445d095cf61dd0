"""Twenty steps of a SentenceTransformerTrainer from one seed: its losses, and ours, are equal."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.hosts import load_drop_in
from tests.support.tiny_sentence_transformer import (
    load_sentence_transformer,
    save_tiny_bert,
    word_columns,
)

STEPS, BATCH = 20, 8
# What a run is made of: arguments of the trainer, and which model, data and wrapper.
RUNS: dict[str, dict[str, Any]] = {
    "plain": {},
    "accumulation": {"gradient_accumulation_steps": 4, "max_steps": STEPS // 4},
    "bf16": {"bf16": True},
    "prompts": {"prompts": {"anchor": "w1 w2 w3", "positive": "w4"}},
    "two datasets": {},
    "matryoshka": {},
    "router": {"router_mapping": {"anchor": "query", "positive": "document"}},
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> str:
    load_drop_in("sentence_transformers")
    pytest.importorskip("datasets")
    return save_tiny_bert(tmp_path_factory.mktemp("bert"))


def make_model(saved: str, kind: str) -> Any:
    if kind != "router":
        return load_sentence_transformer(saved)
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Router, Transformer

    towers = [[Transformer(saved), Pooling(32)] for _ in range(2)]
    return SentenceTransformer(modules=[Router.for_query_document(*towers)], device="cpu")


def make_data(seed: int) -> Any:
    from datasets import Dataset

    return Dataset.from_dict(
        dict(zip(("anchor", "positive"), word_columns(64, 2, seed), strict=True))
    )


def losses_of(cls: Any, saved: str, kind: str, folder: Path) -> list[float]:
    """Of every step. The model, and with it dropout, starts from the same seed."""
    from sentence_transformers import (
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.losses import MatryoshkaLoss

    torch.manual_seed(3)
    model = make_model(saved, kind)
    loss = cls(model, mini_batch_size=3) if cls.__name__.startswith("Cached") else cls(model)
    if kind == "matryoshka":
        loss = MatryoshkaLoss(model, loss, [32, 16, 8])
    arguments = {
        **{"output_dir": str(folder), "max_steps": STEPS, "per_device_train_batch_size": BATCH},
        **{"learning_rate": 1e-3, "logging_steps": 1, "report_to": "none", "save_strategy": "no"},
        **{"use_cpu": True, "disable_tqdm": True, "seed": 5, **copy.deepcopy(RUNS[kind])},
    }
    data = {"a": make_data(1), "b": make_data(2)} if kind == "two datasets" else make_data(1)
    model.model_card_data.generate_widget_examples = False
    trainer = SentenceTransformerTrainer(
        model=model,
        args=SentenceTransformerTrainingArguments(**arguments),
        train_dataset=data,
        loss=loss,
    )
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *(("MultipleNegativesRankingLoss", kind) for kind in RUNS),
        *(
            ("CachedMultipleNegativesRankingLoss", kind)
            for kind in ("plain", "accumulation", "matryoshka", "router")
        ),
    ],
)
def test_the_losses_are_those_of_the_host(name: str, kind: str, saved: str, tmp_path: Path) -> None:
    ours = getattr(load_drop_in("sentence_transformers"), name)
    found = losses_of(ours, saved, kind, tmp_path)
    expected = losses_of(ours.__mro__[1], saved, kind, tmp_path)
    assert len(found) == RUNS[kind].get("max_steps", STEPS)
    # Under bfloat16 the host rounds its scores to it, to 8 bits of up to 20.
    assert found == pytest.approx(expected, abs=0.05 if kind == "bf16" else 1e-4)
    assert min(found) > 0.1 and len(set(found)) == len(found)
