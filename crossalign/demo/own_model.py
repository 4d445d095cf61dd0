"""The demo of a model that the user has: measured, aligned for some minutes, measured again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch

from crossalign.alignment.config import TrainingConfig
from crossalign.alignment.train import align
from crossalign.data.languages import LANGUAGE_NAMES
from crossalign.demo.corpus import Corpus, make_corpus
from crossalign.demo.measurement import Measurement, measure
from crossalign.demo.own_text import own_text
from crossalign.demo.story import Story
from crossalign.models.hidden_states import check_layer, num_layers
from crossalign.models.loading import load_model
from crossalign.version import __version__

STEPS = 60
BATCH_SIZE = 32
NUM_PAIRS, NUM_HELD_OUT = 4000, 200  # of the made-up corpus
NUM_SCORED = 50  # sentences of each language for its perplexity: logits cost most here
MEASURED_AT_ONCE = 32


def tell_of_model(
    name: str,
    pairs: Sequence[str],
    layer: int | None,
    steps: int | None,
    *,
    seed: int,
    device: torch.device,
) -> Story:
    """Aligns content tokens less the mean of the batch, and no next-token loss: what a large model
    learns from within minutes (docs/real-model.md).

    layer: None is a quarter of the blocks. steps: None is STEPS.
    """
    if pairs:
        corpus = own_text(pairs, seed)
    else:
        corpus = make_corpus(num_texts=0, num_pairs=NUM_PAIRS, num_held_out=NUM_HELD_OUT, seed=seed)
    model, tokenizer = load_model(name, device=device, flag="--model: ")
    if layer is None:
        layer = max(1, num_layers(model) // 4)
    check_layer("demo", model, layer)
    layer %= num_layers(model) + 1
    config = TrainingConfig(
        layer=layer,
        pool_tokens="content",
        center="batch",
        temperature=0.1,
        symmetric=True,
        lm_weight=0.0,
        learning_rate=1e-4,
        steps=STEPS if steps is None else steps,
        batch_size=min(BATCH_SIZE, len(corpus.pairs)),
        chunk_size=16,
        max_length=128,
        freeze=("embeddings",),
        seed=seed,
        device=str(device),
    )

    def measured(when: str) -> Measurement:
        return measure(
            *(model, tokenizer, corpus.held_out),
            aligned_layer=layer,
            description=f"measure {when}",
            pool_tokens=config.pool_tokens,
            num_scored=NUM_SCORED,
            batch_size=MEASURED_AT_ONCE,
        )

    before = measured("before")
    align(model, tokenizer, corpus.pairs, config)
    return Story(
        *(model, tokenizer, corpus.held_out, before, measured("after")),
        layer=layer,
        num_pairs=min(len(corpus.pairs), config.steps * config.batch_size),
        opening=f"The language model {name} was taken as it is.",
        facts=_facts(name, model, config, corpus, made_up=not pairs),
        settings={"model": name, "pairs": list(pairs), "alignment": asdict(config)},
    )


def _facts(
    name: str, model: Any, config: TrainingConfig, corpus: Corpus, *, made_up: bool
) -> dict[str, str]:
    """Name -> value, for the end of the report."""
    names = ", ".join(LANGUAGE_NAMES[code] for code in corpus.held_out)
    text = "sentences of a hand-written grammar" if made_up else "the given pairs"
    return {
        "Corpus": f"{text} in {names}: {len(corpus.pairs):,} pairs to align, "
        f"{len(next(iter(corpus.held_out.values()))):,} sentences held out",
        "Model": f"{name}, {num_layers(model)} blocks, {model.num_parameters():,} weights",
        "Sentence vectors": "mean over the tokens of the text, without those that the tokenizer "
        "adds",
        "Alignment": f"{config.steps} steps of {config.batch_size} pairs at layer {config.layer} "
        f"(less the mean of the batch, temperature {config.temperature:g}, both directions, no "
        "next-token loss, embeddings frozen); peak learning rate "
        f"{config.learning_rate:g}",
        "Perplexity": f"of the first {NUM_SCORED} held-out sentences of each language",
        "Seed": str(config.seed),
        "Software": f"crossalign {__version__}, PyTorch {torch.__version__}, device {model.device}",
    }
