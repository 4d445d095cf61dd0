"""The whole method in minutes, out of nothing: corpus, model, alignment, measurements, report."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from crossalign.alignment.config import TrainingConfig
from crossalign.alignment.train import align
from crossalign.data.builders import TrainingItem, build_items
from crossalign.data.pairs import Pair
from crossalign.demo.corpus import make_corpus
from crossalign.demo.grammar.lexicon import LANGUAGES
from crossalign.demo.grammar.parallel_grammar import num_sentences
from crossalign.demo.language_model import new_model, pretrain, train_tokenizer
from crossalign.demo.measurement import Measurement, accuracy_table, measure
from crossalign.demo.report import write_report
from crossalign.evaluation.vectors.retrieval import write_retrieval_csv
from crossalign.files.output import atomic_directory, check_output_directory, let_others_read
from crossalign.models.loading import choose_device
from crossalign.version import __version__

ENTRIES = ("report.html", "retrieval.csv", "projection.csv", "demo.json", "model")


@dataclass(frozen=True, kw_only=True)
class DemoSettings:
    """Sizes of the demo. Of `pretraining`, pretrain says which settings it reads."""

    texts_per_language: int
    num_pairs: int
    num_held_out: int
    vocabulary_size: int
    hidden_size: int
    num_blocks: int
    pretraining: TrainingConfig
    alignment: TrainingConfig


FULL = DemoSettings(
    texts_per_language=4000,
    num_pairs=8000,
    num_held_out=1000,
    vocabulary_size=3000,
    hidden_size=256,
    num_blocks=4,
    pretraining=TrainingConfig(steps=300, batch_size=64, learning_rate=2e-3),
    alignment=TrainingConfig(steps=260, batch_size=192, lm_batch_size=24, learning_rate=3e-3),
)
# Every part of the story in seconds, for tests; too short for much to be learnt.
SMOKE = DemoSettings(
    texts_per_language=200,
    num_pairs=200,
    num_held_out=60,
    vocabulary_size=800,
    hidden_size=64,
    num_blocks=2,
    pretraining=TrainingConfig(steps=12, batch_size=16, learning_rate=2e-3),
    alignment=TrainingConfig(steps=25, batch_size=32, lm_batch_size=8, learning_rate=2e-3),
)


class DemoResult(NamedTuple):
    """output: where report.html, the data behind it and the aligned model lie."""

    output: Path
    before: Measurement
    after: Measurement
    seconds: float


def run_demo(
    output: Path,
    *,
    device: str = "cpu",
    seed: int = 0,
    smoke: bool = False,
    overwrite: bool = False,
) -> DemoResult:
    """Makes a parallel corpus, trains a tiny model on it, aligns its languages, shows the change.

    Prints a table of retrieval accuracies. The same seed on the same machine gives the same
    numbers.

    Args:
        output: directory for the results, absent or empty. A failed run leaves it as it was.
        device: "cpu", "cuda", ..., or "auto" for a GPU if there is one.
        seed: of corpus, weights and training.
        smoke: a few steps on a smaller model, to see that everything runs.
        overwrite: output may be that of an earlier demo too, which is replaced.

    Raises:
        FileExistsError: output holds something else.
        ValueError: the device is not there, or the seed is negative.
    """
    started = time.perf_counter()
    settings = SMOKE if smoke else FULL
    settings = replace(
        settings,
        pretraining=replace(settings.pretraining, seed=seed, device=device),
        alignment=replace(settings.alignment, seed=seed, device=device),
    )
    target_device = choose_device(device)
    check_output_directory(output, overwrite=overwrite, entries=ENTRIES)
    story = _tell(settings, target_device)
    print(accuracy_table(story.before, story.after, settings.alignment.layers[0]))
    with atomic_directory(output, overwrite=overwrite, entries=ENTRIES) as directory:
        _write(story, settings, directory)
    seconds = time.perf_counter() - started
    print(f"\n{output / 'report.html'} has the picture; {seconds:.0f} seconds in all.")
    return DemoResult(output, story.before, story.after, seconds)


class _Story(NamedTuple):
    model: LlamaForCausalLM  # aligned
    tokenizer: PreTrainedTokenizerFast
    held_out: dict[str, list[str]]
    before: Measurement
    after: Measurement


def _tell(settings: DemoSettings, device: torch.device) -> _Story:
    seed, layer = settings.alignment.seed, settings.alignment.layers[0]
    corpus = make_corpus(
        num_texts=settings.texts_per_language * len(LANGUAGES),
        num_pairs=settings.num_pairs,
        num_held_out=settings.num_held_out,
        seed=seed,
    )
    tokenizer = train_tokenizer(corpus.texts, settings.vocabulary_size)
    model = new_model(
        tokenizer, hidden_size=settings.hidden_size, num_blocks=settings.num_blocks, seed=seed
    )
    model.to(device)  # type: ignore[arg-type]
    pretrain(model, tokenizer, corpus.texts, settings.pretraining)
    before = measure(
        model, tokenizer, corpus.held_out, aligned_layer=layer, description="measure before"
    )
    items = _language_model_items(corpus.pairs, corpus.texts, seed)
    align(model, tokenizer, corpus.pairs, settings.alignment, lm_items=items)
    after = measure(
        model, tokenizer, corpus.held_out, aligned_layer=layer, description="measure after"
    )
    return _Story(model, tokenizer, corpus.held_out, before, after)


def _write(story: _Story, settings: DemoSettings, directory: Path) -> None:
    """Leaves ENTRIES in the directory."""
    before, after = story.before, story.after
    story.model.save_pretrained(directory / "model")
    story.tokenizer.save_pretrained(directory / "model")
    let_others_read(directory / "model")
    write_retrieval_csv(directory / "retrieval.csv", {"before": before.rows, "after": after.rows})
    write_report(
        directory,
        before,
        after,
        story.held_out,
        layer=settings.alignment.layers[0],
        num_pairs=settings.num_pairs,
        facts=_facts(settings, story.model),
    )
    (directory / "demo.json").write_text(_as_json(settings, before, after), encoding="utf-8")


def _language_model_items(
    pairs: Sequence[Pair], texts: Sequence[str], seed: int
) -> list[TrainingItem]:
    """As many translations as plain texts again, so that the model keeps what it has learnt."""
    translations = build_items("translation", pairs, repeats=1, seed=seed)
    rehearsed = random.Random(seed).sample(texts, min(len(texts), len(pairs)))
    plain: list[TrainingItem] = [
        {"sent0": "", "sent1": "", "clm_text": text, "clm_prompt_len": 0} for text in rehearsed
    ]
    return translations + plain


def _facts(settings: DemoSettings, model: LlamaForCausalLM) -> dict[str, str]:
    """Name -> value, for the end of the report."""
    pretraining, alignment = settings.pretraining, settings.alignment
    return {
        "Corpus": f"sentences of a hand-written grammar with {num_sentences():,} in each language; "
        f"{settings.texts_per_language:,} texts per language to learn from, "
        f"{settings.num_pairs:,} pairs to align, {settings.num_held_out:,} held out: no sentence "
        "in two of these",
        "Model": f"Llama, {settings.num_blocks} blocks of width {settings.hidden_size}, "
        f"{model.num_parameters():,} weights; byte-level BPE, {model.config.vocab_size:,} tokens",
        "Pre-training": f"{pretraining.steps} steps of {pretraining.batch_size} texts, peak "
        f"learning rate {pretraining.learning_rate:g}",
        "Alignment": f"{alignment.steps} steps of {alignment.batch_size} pairs at layer "
        f"{alignment.layer} ({alignment.pooling} pooling, temperature {alignment.temperature:g}), "
        f"plus {alignment.lm_weight:g} x the next-token loss on {alignment.lm_batch_size} texts, "
        "half of them translations, half plain sentences read before; peak learning rate "
        f"{alignment.learning_rate:g}",
        "Seed": str(alignment.seed),
        "Software": f"crossalign {__version__}, PyTorch {torch.__version__}, device {model.device}",
    }


def _as_json(settings: DemoSettings, before: Measurement, after: Measurement) -> str:
    results = {
        name: {
            "mean_accuracy_per_layer": [
                measured.accuracy(layer) for layer in range(settings.num_blocks + 1)
            ],
            "same_language_neighbours_per_layer": measured.neighbours,
            "perplexities": measured.perplexities,
        }
        for name, measured in (("before", before), ("after", after))
    }
    return json.dumps({"settings": asdict(settings), **results}, indent=1) + "\n"
