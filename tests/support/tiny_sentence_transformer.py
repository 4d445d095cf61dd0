"""A random two-layer BERT as a SentenceTransformer, made on the spot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{index}" for index in range(60))]


def save_tiny_bert(directory: Path, *, dropout: float = 0.1, seed: int = 0) -> str:
    """A checkpoint and its tokenizer, as transformers load them."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    tokenizer = Tokenizer(
        models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=32,
    )
    fast.save_pretrained(directory)
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        max_position_embeddings=32,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    BertModel(config).save_pretrained(directory)
    return str(directory)


def tiny_sentence_transformer(directory: Path, **options: Any) -> Any:
    return load_sentence_transformer(save_tiny_bert(directory, **options))


def load_sentence_transformer(directory: str) -> Any:
    """Mean pooling over what save_tiny_bert has saved."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    return SentenceTransformer(modules=[Transformer(directory), Pooling(32)], device="cpu")


def word_columns(rows: int, columns: int = 2, seed: int = 0) -> list[list[str]]:
    """Columns of short sentences, those of one row with words in common."""
    generator = torch.Generator().manual_seed(seed)
    first = torch.randint(0, 60, (rows, 6), generator=generator)
    made = []
    for _ in range(columns):
        other = torch.randint(0, 60, (rows, 6), generator=generator)
        lengths = torch.randint(2, 7, (rows,), generator=generator).tolist()
        mixed = torch.where(torch.rand(rows, 6, generator=generator) < 0.5, first, other).tolist()
        made.append(
            [
                " ".join(f"w{word}" for word in row[:length])
                for row, length in zip(mixed, lengths, strict=True)
            ]
        )
    return made
