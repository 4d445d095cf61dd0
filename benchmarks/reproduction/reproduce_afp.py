"""Does aligning a language model that never saw a translation do what the AFP paper says?

python -m benchmarks.reproduction.reproduce_afp --preset cpu  # one to two hours of one core
python -m benchmarks.reproduction.reproduce_afp --preset gpu  # larger, eight more languages

A multilingual model is pre-trained on monolingual text and aligned with both losses (AFP), with
prompted translations only (CIF) and with the contrastive loss only (MCL), that one and AFP also
at other layers and MCL with other batch sizes, every time on as many pairs. Each configuration of
each seed appends one line to the result file as soon as it is done; a further call goes on with
what is missing, and one with --only can work on another part of it at the same time.
benchmarks.reproduction.plot draws the table and the figure of docs/reproduction.md.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from benchmarks.provenance import ROOT, provenance
from benchmarks.reproduction.data import Corpus, load_corpus
from benchmarks.reproduction.measures import measure
from benchmarks.reproduction.model import new_tokenizer, pretrain
from crossalign.alignment.config import TrainingConfig
from crossalign.alignment.train import align
from crossalign.data.builders import TrainingItem, build_items
from crossalign.demo.language_model import new_model

BEFORE = "before"


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """A whole reproduction."""

    tatoeba: tuple[str, ...] = ("zh",)
    captions_per_language: int = 5000  # for pre-training; the lines behind these are pairs
    texts_per_language: int = 5000  # of Tatoeba, for pre-training
    vocabulary: int = 5000
    width: int = 128
    blocks: int = 6
    epochs: int = 3
    block_length: int = 256  # as long as a prompt with five demonstrations
    pretraining_batch: int = 8
    pretraining_learning_rate: float = 3e-3
    layers: tuple[int, ...] = (1, 2, 4)
    batch_sizes: tuple[int, ...] = (64, 512, 8192)
    main_batch_size: int = 64
    chunk_size: int = 512
    pairs_seen: int = 32_768
    texts_seen: int = 32_768  # for the next-token loss, spread evenly over the steps
    monolingual_share: float = 0.5  # of those texts; the others are prompted translations
    lm_block_length: int = 256  # several texts in a row of so many tokens
    learning_rate: float = 1e-3  # at main_batch_size
    held_out: int = 300
    tests: int = 500
    questions: int = 60  # per direction, without demonstrations
    questions_with_demos: int = 20
    seeds: tuple[int, ...] = (0, 1, 2)


# fmt: off
PRESETS = {
    "smoke": Sizes(
        tatoeba=("hi",), captions_per_language=60, texts_per_language=40,
        vocabulary=400, width=16, blocks=2, epochs=1, block_length=32,
        layers=(1, 2), batch_sizes=(16, 32), main_batch_size=16, chunk_size=16,
        pairs_seen=32, texts_seen=16, held_out=8, tests=20, seeds=(0, 1),
        questions=2, questions_with_demos=1,
    ),
    "cpu": Sizes(),
    "gpu": Sizes(
        tatoeba=("ja", "zh", "ar", "hi", "id", "ko", "th", "vi"),
        texts_per_language=10_000, vocabulary=32_000, width=512, blocks=12,
        epochs=8, layers=(1, 2, 4, 8), chunk_size=2048, pairs_seen=524_288,
        texts_seen=262_144, lm_block_length=512,
        pretraining_learning_rate=1e-3, learning_rate=3e-4, held_out=400,
        questions=200, questions_with_demos=200,
    ),
}
# fmt: on


@dataclass(frozen=True)
class Configuration:
    """is_main: its choices are measured too."""

    name: str
    contrastive_weight: float
    lm_weight: float
    layer: int
    batch_size: int
    is_main: bool = False


def configurations(sizes: Sizes) -> list[Configuration]:
    """The main comparison first, the dearest last."""
    first, main = sizes.layers[0], sizes.main_batch_size
    found = [
        Configuration("AFP", 1.0, 1.5, first, main, is_main=True),
        Configuration("CIF", 0.0, 1.5, first, main, is_main=True),
        Configuration("MCL", 1.0, 0.0, first, main, is_main=True),
    ]
    found += [
        Configuration(f"MCL, batch {batch}", 1.0, 0.0, first, batch)
        for batch in sizes.batch_sizes
        if batch != main
    ]
    found += [
        Configuration(f"MCL, layer {layer}", 1.0, 0.0, layer, main) for layer in sizes.layers[1:]
    ]
    last = sizes.layers[-1]
    return [*found, Configuration(f"AFP, layer {last}", 1.0, 1.5, last, main)]


def lm_items(corpus: Corpus, sizes: Sizes, seed: int) -> list[TrainingItem]:
    """Translations in both directions, and pre-training texts whose every token counts."""
    prompted = build_items("translation", corpus.pairs, repeats=1, seed=seed)
    texts = [text for part in corpus.texts.values() for text in part]
    share = sizes.monolingual_share
    wanted = min(len(texts), round(len(prompted) * share / (1 - share)))
    monolingual: list[TrainingItem] = [
        {"sent0": "", "sent1": "", "clm_text": text, "clm_prompt_len": 0}
        for text in random.Random(seed).sample(texts, wanted)
    ]
    return prompted + monolingual


def align_copy(
    folder: Path, corpus: Corpus, sizes: Sizes, wanted: Configuration, seed: int, device: str
) -> tuple[LlamaForCausalLM, dict[str, float]]:
    """The pre-trained model aligned, and the record of the last step."""
    model = LlamaForCausalLM.from_pretrained(folder)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    steps = sizes.pairs_seen // wanted.batch_size
    config = TrainingConfig(
        layer=wanted.layer,
        contrastive_weight=wanted.contrastive_weight,
        lm_weight=wanted.lm_weight,
        # Without a contrastive loss its pairs would be run for nothing.
        batch_size=wanted.batch_size if wanted.contrastive_weight else 2,
        chunk_size=sizes.chunk_size,
        lm_batch_size=sizes.texts_seen // steps,
        block_length=sizes.lm_block_length,
        steps=steps,
        # Larger batches make fewer steps; the noise of a step falls with the root of the batch.
        learning_rate=sizes.learning_rate * math.sqrt(wanted.batch_size / sizes.main_batch_size),
        precision="bf16",
        seed=seed,
        device=device,
    )
    items = lm_items(corpus, sizes, seed)
    records: list[dict[str, float]] = []
    align(model, tokenizer, corpus.pairs, config, lm_items=items, on_step=records.append)
    return model, records[-1]


def pretrained(folder: Path, corpus: Corpus, sizes: Sizes, seed: int, device: str) -> None:
    """Model and tokenizer of a seed in folder, made unless they are there."""
    if (folder / "config.json").exists():
        return
    tokenizer = new_tokenizer(corpus.texts, sizes.vocabulary)
    model = new_model(tokenizer, hidden_size=sizes.width, num_blocks=sizes.blocks, seed=seed)
    nn.Module.to(model, device)
    pretrain(
        model,
        tokenizer,
        corpus.texts,
        epochs=sizes.epochs,
        block_length=sizes.block_length,
        batch_size=sizes.pretraining_batch,
        learning_rate=sizes.pretraining_learning_rate,
        seed=seed,
        half=True,
    )
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)  # writes config.json: last


def run_one(
    name: str, seed: int, corpus: Corpus, sizes: Sizes, options: argparse.Namespace
) -> dict[str, Any]:
    """What is measured of one configuration, or of the model before."""
    wanted = next((each for each in configurations(sizes) if each.name == name), None)
    folder = options.work / f"seed{seed}"
    started = time.process_time()
    pretrained(folder, corpus, sizes, seed, options.device)
    row: dict[str, Any] = {}
    if wanted is None:
        model = LlamaForCausalLM.from_pretrained(folder).to(options.device)
    else:
        model, last = align_copy(folder, corpus, sizes, wanted, seed, options.device)
        row = {"configuration": asdict(wanted), "last_step": last}
    row["processor_seconds"] = time.process_time() - started
    has_choices = wanted is None or wanted.is_main
    questions = {0: sizes.questions, 5: sizes.questions_with_demos} if has_choices else {}
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    return row | measure(model, tokenizer, corpus, sizes.layers, questions)


class Results:
    """The result file: a "run" line for every call, a "result" line per seed and configuration."""

    def __init__(self, path: Path, sizes: Sizes, device: str) -> None:
        self.path = path
        settings = json.loads(json.dumps(asdict(sizes)))
        for row in self._rows():
            if row["record"] == "run" and row["sizes"] != settings:
                raise SystemExit(f"{path} holds a run of other sizes; give another --output")
        run = {"subject": "reproduce_afp", **provenance(torch.device(device))}
        path.parent.mkdir(parents=True, exist_ok=True)
        self._append({"record": "run", **run, "sizes": settings})

    def has(self, seed: int, name: str) -> bool:
        """Asks the file, to which another call may be adding."""
        return any(
            (row["record"], row.get("seed"), row.get("name")) == ("result", seed, name)
            for row in self._rows()
        )

    def add(self, seed: int, name: str, measured: dict[str, Any]) -> None:
        self._append({"record": "result", "seed": seed, "name": name, **measured})
        print(f"seed {seed}: {name}: done", flush=True)

    def _rows(self) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        return [json.loads(line) for line in self.path.read_text().splitlines()]

    def _append(self, row: dict[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    data = Path(os.environ.get("CROSSALIGN_DATA", ROOT.parent / "shared" / "data"))
    parser.add_argument("--preset", choices=PRESETS, default="smoke")
    parser.add_argument("--data", type=Path, default=data, help="folder that has pairs and eval")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--work", type=Path, help="pre-trained models (default: runs/PRESET)")
    parser.add_argument("--output", type=Path, help="result file (default: in the work folder)")
    parser.add_argument("--only", nargs="+", metavar="NAME", help='configurations, such as "MCL"')
    options = parser.parse_args(argv)
    options.work = options.work or ROOT / "runs" / f"reproduce_afp_{options.preset}"
    sizes = PRESETS[options.preset]
    names = [BEFORE, *(each.name for each in configurations(sizes))]
    if unknown := set(options.only or ()) - set(names):
        parser.error(f"--only: no configuration {sorted(unknown)}; there are {names}")
    results = Results(options.output or options.work / "results.jsonl", sizes, options.device)
    corpus = load_corpus(
        options.data,
        sizes.tatoeba,
        captions_per_language=sizes.captions_per_language,
        texts_per_language=sizes.texts_per_language,
        held_out=sizes.held_out,
        tests=sizes.tests,
    )
    for name in options.only or names:
        for seed in sizes.seeds:
            if not results.has(seed, name):
                results.add(seed, name, run_one(name, seed, corpus, sizes, options))
    print(f"results in {results.path}")


if __name__ == "__main__":
    main()
