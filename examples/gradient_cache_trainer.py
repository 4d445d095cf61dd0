"""Batches of 64 pairs in the Trainer of transformers, of which the encoder holds 8 at a time.

python examples/gradient_cache_trainer.py [--steps 20]
"""

import argparse
import tempfile
from typing import Any

import torch
from transformers import BertConfig, BertModel, Trainer, TrainingArguments

from crossalign import GradientCache, fused_contrastive_loss, masked_mean_pool


class ContrastiveTrainer(Trainer):
    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: Any = False, num_items_in_batch: Any = None
    ) -> Any:
        def encode(batch: Any) -> Any:
            hidden = model(**batch).last_hidden_state
            return masked_mean_pool(hidden, batch["attention_mask"])

        cache = GradientCache(encode, fused_contrastive_loss, chunk_size=8)
        return cache(inputs["query"], inputs["key"])


def collate(rows: Any) -> Any:
    """Two sides, each with 4 of a row's 12 words replaced."""
    words = torch.stack([row["words"] for row in rows])
    sides = {}
    for name in ("query", "key"):
        other = torch.randint_like(words, 1, 200)
        ids = torch.where(torch.rand(words.shape) < 1 / 3, other, words)
        sides[name] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return sides


parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=20)
steps = parser.parse_args().steps

torch.manual_seed(0)
data = [{"words": torch.randint(1, 200, (12,))} for _ in range(512)]
config = BertConfig(
    vocab_size=200,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=64,
)
with tempfile.TemporaryDirectory() as folder:
    arguments = TrainingArguments(
        output_dir=folder,
        max_steps=steps,
        per_device_train_batch_size=64,
        gradient_accumulation_steps=2,
        learning_rate=1e-3,
        remove_unused_columns=False,
        report_to="none",
        logging_steps=5,
        use_cpu=not torch.cuda.is_available(),
    )
    trainer = ContrastiveTrainer(BertModel(config), arguments, collate, data)
    print(trainer.train())
