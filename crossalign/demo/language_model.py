"""A tiny language model from scratch: byte-level BPE and a Llama of about three million weights.

It learns each language from other sentences, so nothing tells it that any two mean the same.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from crossalign.alignment.config import TrainingConfig
from crossalign.alignment.schedule import learning_rate_at
from crossalign.data.permutation import ShuffledStream

PAD, BOS, EOS = "<pad>", "<bos>", "<eos>"
MAX_TOKENS = 128
LARGEST_GRADIENT_NORM = 1.0
IGNORED = -100


def train_tokenizer(texts: Sequence[str], vocabulary_size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE, so that any text has tokens; a text begins with BOS."""
    specials = [PAD, BOS, EOS]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, specials.index(BOS))]
    )
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        model_max_length=MAX_TOKENS,
    )


def new_model(
    tokenizer: PreTrainedTokenizerFast, *, hidden_size: int, num_blocks: int, seed: int
) -> LlamaForCausalLM:
    """A Llama with random weights and tied embeddings, as long as the tokenizer's texts may be."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=hidden_size,
            intermediate_size=2 * hidden_size,
            num_hidden_layers=num_blocks,
            num_attention_heads=4,
            max_position_embeddings=tokenizer.model_max_length,
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )


def pretrain(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    texts: Sequence[str],
    config: TrainingConfig,
) -> None:
    """Next-token training in place, on config.device; of config also steps, batch_size,
    learning_rate and seed."""
    optimizer = torch.optim.AdamW(model.parameters(), config.learning_rate, weight_decay=0.01)
    stream = ShuffledStream(len(texts), f"pretraining {config.seed}")
    model.train()
    steps = tqdm(range(config.steps), desc="pretrain", unit="step", disable=None)
    for step in steps:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(step, config)
        chosen = stream.take(step * config.batch_size, config.batch_size)
        batch = _labeled_batch(tokenizer, [texts[index] for index in chosen], model.device)
        loss = model(**batch).loss
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), LARGEST_GRADIENT_NORM)
        optimizer.step()
        optimizer.zero_grad()
        steps.set_postfix(loss=f"{loss.item():.3f}")
    model.train(False)


def _labeled_batch(
    tokenizer: PreTrainedTokenizerFast, texts: Sequence[str], device: torch.device
) -> dict[str, Tensor]:
    """input_ids, attention_mask and labels, (B, T), of texts that end with EOS."""
    batch = tokenizer([text + EOS for text in texts], padding=True, return_tensors="pt")
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, IGNORED)
    return {
        "input_ids": batch["input_ids"].to(device),
        "attention_mask": batch["attention_mask"].to(device),
        "labels": labels.to(device),
    }
