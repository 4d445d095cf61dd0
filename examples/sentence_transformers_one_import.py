"""Training a SentenceTransformer with one changed import; everything else is its own.

python examples/sentence_transformers_one_import.py [--model NAME_OR_DIR] [--steps 20]

Without --model a small random BERT stands in.
"""

import argparse
import tempfile

import torch
from datasets import Dataset
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

# from sentence_transformers.losses import CachedMultipleNegativesRankingLoss
from crossalign.integrations.sentence_transformers import CachedMultipleNegativesRankingLoss


def save_random_bert(folder: str) -> str:
    words = ["[PAD]", "[UNK]", *(f"w{index}" for index in range(200))]
    vocabulary = {word: index for index, word in enumerate(words)}
    fast = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    fast.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=fast, unk_token="[UNK]", pad_token="[PAD]", model_max_length=32
    ).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=32,
    )
    BertModel(config).save_pretrained(folder)
    return folder


def sentences(words: torch.Tensor) -> list[str]:
    """Of each row two words in three stay; others take the place of the rest."""
    kept = torch.where(torch.rand(words.shape) < 2 / 3, words, torch.randint_like(words, 200))
    return [" ".join(f"w{word}" for word in row) for row in kept.tolist()]


parser = argparse.ArgumentParser()
parser.add_argument("--model")
parser.add_argument("--steps", type=int, default=20)
arguments = parser.parse_args()

torch.manual_seed(0)
meanings = torch.randint(0, 200, (512, 9))
data = Dataset.from_dict({"anchor": sentences(meanings), "positive": sentences(meanings)})
with tempfile.TemporaryDirectory() as folder:
    model = SentenceTransformer(arguments.model or save_random_bert(folder))
    trainer = SentenceTransformerTrainer(
        model=model,
        args=SentenceTransformerTrainingArguments(
            output_dir=folder,
            max_steps=arguments.steps,
            per_device_train_batch_size=128,
            learning_rate=1e-3,
            logging_steps=5,
            report_to="none",
            save_strategy="no",
            use_cpu=not torch.cuda.is_available(),
        ),
        train_dataset=data,
        loss=CachedMultipleNegativesRankingLoss(model, mini_batch_size=32),
    )
    print(trainer.train())
