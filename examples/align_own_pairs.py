"""AFP on pairs of your own: a causal language model is aligned with them.

python examples/align_own_pairs.py [--model NAME_OR_DIR --pairs PAIRS.tsv] [--steps 60]

Without --model and --pairs a small random model and 400 made-up pairs show it; `crossalign align`
does the same with checkpoints, several GPUs and --resume.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
)

from crossalign import encode
from crossalign.alignment import TrainingConfig, align
from crossalign.data import open_pairs


def made_up_model() -> tuple[Any, Any]:
    words = ["<pad>", "<s>", "</s>", "<unk>"]
    words += [f"{side}{index}" for side in ("cat", "Katze") for index in range(60)]
    vocabulary = {word: index for index, word in enumerate(words)}
    fast = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    fast.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=fast, **special)
    config = GPT2Config(
        vocab_size=len(words), n_embd=48, n_layer=3, n_head=4, n_positions=96, bos_token_id=1
    )
    return GPT2LMHeadModel(config), tokenizer


def made_up_pairs(file: Path) -> None:
    """One pair a line: the sentence, a tab, its translation."""
    for _ in range(400):
        words = torch.randint(0, 60, (5,)).tolist()
        sides = (" ".join(f"{side}{word}" for word in words) for side in ("cat", "Katze"))
        with file.open("a") as lines:
            lines.write("\t".join(sides) + "\n")


parser = argparse.ArgumentParser()
parser.add_argument("--model")
parser.add_argument("--pairs", type=Path)
parser.add_argument("--steps", type=int, default=60)
arguments = parser.parse_args()

torch.manual_seed(0)
with tempfile.TemporaryDirectory() as folder:
    file = arguments.pairs or Path(folder) / "pairs.tsv"
    if arguments.pairs is None:
        made_up_pairs(file)
    pairs = open_pairs([file], ("en", "de"), cache=Path(folder))
    if arguments.model is None:
        model, tokenizer = made_up_model()
    else:
        model = AutoModelForCausalLM.from_pretrained(arguments.model)
        tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    settings = TrainingConfig(layer=1, batch_size=32, steps=arguments.steps, learning_rate=2e-3)
    align(model, tokenizer, pairs, settings, on_step=print)
    held = [pairs[index] for index in range(64)]
    vectors = [
        encode(model, tokenizer, [getattr(pair, side) for pair in held], layer=1)
        for side in ("source", "target")
    ]
found = (vectors[0] @ vectors[1].T).argmax(1) == torch.arange(64)
print(f"accuracy of retrieval among 64 pairs: {found.float().mean():.0%}")
