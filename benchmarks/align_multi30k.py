"""Does `crossalign align` make a model that never saw a translation find translations?

A tiny Llama learns English from 12,000 captions of Multi30k and German from 12,000 others (about
two minutes on a quiet machine of two cores), then is aligned at layer 1 on the last 5,000 pairs
(about one minute). Top-1 retrieval on the 1,000 pairs of test_2016_flickr, before and after:

    python -m benchmarks.align_multi30k [--data ../shared/data] [--output FILE.jsonl]
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.provenance import ROOT, provenance, result_path
from crossalign.alignment.config import TrainingConfig
from crossalign.cli.main import main as crossalign
from crossalign.demo.language_model import new_model, pretrain, train_tokenizer
from crossalign.evaluation.vectors.retrieval import retrieval_scores
from crossalign.files.output import write_json_lines
from crossalign.files.text import read_lines
from crossalign.models.encode import encode

LANGUAGES = ("en", "de")


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_arguments(argv)
    run = {"record": "run", "subject": "align_multi30k", **provenance(torch.device(args.device))}
    run["arguments"] = {name: value for name, value in vars(args).items() if name not in LOCAL}
    folder = args.data / "pairs" / "multi30k"
    train = {code: read_lines(folder / f"train.{code}.gz") for code in LANGUAGES}
    test = {code: read_lines(folder / f"test_2016_flickr.{code}.gz") for code in LANGUAGES}
    texts = train["en"][: args.texts] + train["de"][args.texts : 2 * args.texts]
    row: dict[str, Any] = {"record": "result", "seed": args.seed}
    with tempfile.TemporaryDirectory() as temporary:
        before, after = Path(temporary) / "before", Path(temporary) / "after"
        row |= timed("pretraining", lambda: make_model(texts, before, args))
        row |= {f"before_{name}": value for name, value in measure(before, test, args).items()}
        pairs = [Path(temporary) / f"pairs.{code}" for code in LANGUAGES]
        for path, code in zip(pairs, LANGUAGES, strict=True):
            path.write_text("".join(f"{line}\n" for line in train[code][-args.pairs :]))
        row |= timed("alignment", lambda: align(before, pairs, after, args))
        row |= {f"after_{name}": value for name, value in measure(after, test, args).items()}
        last = read_lines(after / "metrics.jsonl")[-1]
    row["last_step"] = json.loads(last)
    output = args.output or result_path("align_multi30k", run)
    output.parent.mkdir(parents=True, exist_ok=True)
    write_json_lines(output, [run, row])
    print(table(row))
    print(f"written to {output}")


LOCAL = ("data", "output")  # say where, not what


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    data = Path(os.environ.get("CROSSALIGN_DATA", ROOT.parent / "shared" / "data"))
    parser.add_argument("--data", type=Path, default=data, help="folder that has pairs/multi30k")
    parser.add_argument("--output", type=Path, help="result file (None: named by the run)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--texts", type=int, default=12_000, help="of each language, unpaired")
    parser.add_argument("--pairs", type=int, default=5_000, help="other lines, paired")
    parser.add_argument("--hidden-size", type=int, default=128)
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument("--vocabulary-size", type=int, default=4000)
    parser.add_argument("--pretraining-steps", type=int, default=700)
    parser.add_argument("--pretraining-learning-rate", type=float, default=2e-3)
    parser.add_argument("--steps", type=int, default=160)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--lm-batch-size", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    return parser.parse_args(argv)


def timed(name: str, work: Callable[[], None]) -> dict[str, float]:
    """Seconds on the clock, and of processor time in all threads: on a busy machine they differ."""
    wall, processor = time.perf_counter(), time.process_time()
    work()
    return {
        f"{name}_seconds": round(time.perf_counter() - wall, 1),
        f"{name}_processor_seconds": round(time.process_time() - processor, 1),
    }


def make_model(texts: list[str], directory: Path, args: argparse.Namespace) -> None:
    """Tokenizer and model from scratch, of monolingual text only."""
    tokenizer = train_tokenizer(texts, args.vocabulary_size)
    model = new_model(
        tokenizer, hidden_size=args.hidden_size, num_blocks=args.blocks, seed=args.seed
    )
    config = TrainingConfig(
        steps=args.pretraining_steps,
        batch_size=64,
        learning_rate=args.pretraining_learning_rate,
        seed=args.seed,
        device=args.device,
    )
    pretrain(model.to(args.device), tokenizer, texts, config)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def align(model: Path, pairs: list[Path], output: Path, args: argparse.Namespace) -> None:
    command: list[object] = ["align", "--model", model, "--pairs", *pairs, "--output", output]
    command += ["--languages", *LANGUAGES, "--layer", 1, "--steps", args.steps]
    command += ["--batch-size", args.batch_size, "--lm-batch-size", args.lm_batch_size]
    command += ["--learning-rate", args.learning_rate, "--seed", args.seed]
    status = crossalign([*map(str, command), "--device", args.device])
    if status != 0:
        raise SystemExit(status)


def measure(
    directory: Path, sentences: dict[str, list[str]], args: argparse.Namespace
) -> dict[str, float]:
    """Top-1 accuracy both ways at layer 1."""
    model = AutoModelForCausalLM.from_pretrained(directory)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    english, german = (
        encode(model, tokenizer, sentences[code], layer=1, device=args.device) for code in LANGUAGES
    )
    scores = retrieval_scores(english, german)
    return {"en_de": scores.forward_accuracy, "de_en": scores.backward_accuracy}


def table(row: dict[str, Any]) -> str:
    lines = ["top-1 retrieval, 1,000 sentences   en->de   de->en"]
    lines += [
        f"{when:<35}{row[f'{when}_en_de']:6.1%}   {row[f'{when}_de_en']:6.1%}"
        for when in ("before", "after")
    ]
    for name in ("pretraining", "alignment"):
        wall, processor = row[f"{name}_seconds"], row[f"{name}_processor_seconds"]
        lines.append(f"{name}: {wall:.0f} s on the clock, {processor:.0f} s of processor time")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
