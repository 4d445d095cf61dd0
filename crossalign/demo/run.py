"""The whole method in minutes: corpus, model, alignment, measurements, report."""

from __future__ import annotations

import random
import textwrap
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import LlamaForCausalLM

from crossalign.alignment.config import TrainingConfig
from crossalign.alignment.train import align
from crossalign.data.builders import TrainingItem, build_items
from crossalign.data.languages import LANGUAGE_NAMES
from crossalign.data.pairs import Pair
from crossalign.demo.corpus import make_corpus
from crossalign.demo.grammar.lexicon import LANGUAGES
from crossalign.demo.grammar.parallel_grammar import num_sentences
from crossalign.demo.language_model import new_model, pretrain, train_tokenizer
from crossalign.demo.measurement import Measurement, accuracy_table, gain_and_cost, measure
from crossalign.demo.own_model import tell_of_model
from crossalign.demo.story import ENTRIES, Story, write_story
from crossalign.files.output import atomic_directory, check_output_directory
from crossalign.models.loading import choose_device
from crossalign.version import __version__


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
# Every part of the story in seconds, for tests; too short for much to be learned.
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
    model: str | None = None,
    pairs: Sequence[str] = (),
    layer: int | None = None,
    steps: int | None = None,
) -> DemoResult:
    """Aligns the languages of a model and shows the change: of a tiny one that it trains from
    scratch on a made-up corpus, or of the one that is named.

    Prints a table of retrieval accuracies. The same seed on the same machine gives the same
    numbers.

    Args:
        output: directory for the results, absent or empty. A failed run leaves it as it was.
        device: "cpu", "cuda", ..., or "auto" for a GPU if there is one.
        seed: of corpus, weights and training.
        smoke: a few steps (on a smaller model), to see that everything runs.
        model: name of a model to align instead: a directory, a .gguf file or a name on the hub.
        pairs: of that model: files as own_text takes them; () for the made-up corpus.
        layer, steps: of that model's alignment; None: of own_model.
        overwrite: output may be that of an earlier demo too, which is replaced.

    Raises:
        FileExistsError: output holds something else.
        ValueError: the device is not there, the seed is negative, pairs, layer or steps without a
            model, or pairs that cannot be used.
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
    if model is not None:
        story = tell_of_model(
            *(model, pairs, layer, 2 if smoke else steps), seed=seed, device=target_device
        )
    elif pairs or layer is not None or steps is not None:
        raise ValueError("run_demo: pairs, layer and steps need a model; give one")
    else:
        story = _tell(settings, target_device)
    print(accuracy_table(story.before, story.after, story.layer))
    words = gain_and_cost(story.before, story.after, story.layer)
    print(f"\n{textwrap.fill(words, 80)}")
    with atomic_directory(output, overwrite=overwrite, entries=ENTRIES) as directory:
        write_story(story, directory)
    seconds = time.perf_counter() - started
    print(f"\n{output / 'report.html'} has the picture; {seconds:.0f} seconds in all.")
    return DemoResult(output, story.before, story.after, seconds)


def _tell(settings: DemoSettings, device: torch.device) -> Story:
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
    names = [LANGUAGE_NAMES[language] for language in corpus.held_out]
    return Story(
        *(model, tokenizer, corpus.held_out, before, after),
        layer=layer,
        num_pairs=settings.num_pairs,
        opening=f"A small language model learned {', '.join(names[:-1])} and {names[-1]} from "
        "texts that have no sentence in common: nothing told it that any two sentences mean the "
        "same.",
        facts=_facts(settings, model),
        settings=asdict(settings),
    )


def _language_model_items(
    pairs: Sequence[Pair], texts: Sequence[str], seed: int
) -> list[TrainingItem]:
    """As many translations as plain texts again, so that the model keeps what it has learned."""
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
