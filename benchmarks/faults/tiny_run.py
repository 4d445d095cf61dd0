"""A run of `crossalign align` of a second: a small model with dropout, pairs, and its results."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import torch

from crossalign.files.manifest import MANIFEST_FILE, check_manifest

WORDS = 97
STEPS, SAVE_EVERY = 4, 2


class TinyRun:
    """The files that the commands read, and what they are told."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.model = folder, folder / "model"
        self.pairs, self.held_out = folder / "pairs.tsv", folder / "held_out.tsv"
        _write_model(self.model)
        lines = [
            "\t".join(" ".join(f"w{3 + (k * a + b) % 37 + side}" for a, b in _STRIDES[: 1 + k % 3])
                      for side in (0, 40)) + "\n"
            for k in range(36)
        ]  # fmt: skip
        self.pairs.write_text("".join(lines[:24]))
        self.held_out.write_text("".join(lines[24:]))

    def align(self, output: Path, *flags: object, steps: int = STEPS) -> list[object]:
        return [
            *("align", "--model", self.model, "--pairs", self.pairs, "--output", output),
            *("--steps", steps, "--save-every", SAVE_EVERY, "--batch-size", 8, "--device", "cpu"),
            *("--learning-rate", "1e-3", "--evaluate-every", SAVE_EVERY),
            *("--evaluate-pairs", self.held_out, "--cache", self.folder / "cache", *flags),
        ]


_STRIDES = ((1, 0), (5, 3), (11, 7))


def _write_model(folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": 64,
        "vocab_size": WORDS,
    }
    GPT2LMHeadModel(GPT2Config(**sizes)).save_pretrained(folder)  # with GPT-2's dropout of 0.1
    words = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"w{k}": k for k in range(3, WORDS)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)


def outcome(directory: Path) -> dict[str, Any]:
    """What a run came to: its weights, its records and its scores, without the seconds."""
    records = {}
    for name in ("metrics.jsonl", "evaluations.jsonl"):
        path = directory / name
        lines = path.read_text(errors="replace").splitlines() if path.exists() else []
        found = [json.loads(line) for line in lines if line.startswith("{") and line[-1:] == "}"]
        records[name] = [{k: v for k, v in each.items() if k != "seconds"} for each in found]
    weights = directory / "model.safetensors"
    digest = hashlib.sha256(weights.read_bytes()).hexdigest() if weights.exists() else ""
    return {"weights": digest, **records}


def whole_checkpoints(directory: Path) -> list[int]:
    """The steps of the checkpoints that have their name; raises where one is not whole."""
    found = []
    for path in (directory / "checkpoints").glob("step-*"):
        assert (path / MANIFEST_FILE).exists(), path
        check_manifest(path)
        found.append(int(path.name.removeprefix("step-")))
    return sorted(found)


def copied(source: Path, target: Path) -> Path:
    """A copy in which no file is a link to that of a checkpoint."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)
    return target
