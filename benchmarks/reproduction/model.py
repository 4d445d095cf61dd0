"""The multilingual language model of reproduce_afp: a Llama pre-trained on packed sentences."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from crossalign.alignment.config import TrainingConfig
from crossalign.alignment.schedule import learning_rate_at
from crossalign.demo.language_model import train_tokenizer

POSITIONS = 1024  # five demonstrations and a question need a few hundred
LARGEST_GRADIENT_NORM = 1.0


def new_tokenizer(texts: Mapping[str, Sequence[str]], size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE of all languages."""
    tokenizer = train_tokenizer([text for part in texts.values() for text in part], size)
    tokenizer.model_max_length = POSITIONS
    return tokenizer


def packed_blocks(
    tokenizer: PreTrainedTokenizerFast, texts: Sequence[str], length: int, seed: str
) -> Tensor:
    """(blocks, length) token ids: the sentences in a random order, each from BOS to EOS, cut into
    blocks. Which sentences are neighbors is chance, so no block says what translates what."""
    shuffled = list(texts)
    random.Random(seed).shuffle(shuffled)
    ids = tokenizer(shuffled, return_attention_mask=False)["input_ids"]
    flat = [token for sentence in ids for token in (*sentence, tokenizer.eos_token_id)]
    whole = len(flat) // length
    return torch.tensor(flat[: whole * length]).view(whole, length)


def pretrain(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    texts: Mapping[str, Sequence[str]],
    *,
    epochs: int,
    block_length: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    half: bool,
) -> float:
    """Next-token training in place; the mean loss of the last tenth of the steps. half: bfloat16
    products under autocast."""
    every = [text for part in texts.values() for text in part]
    blocks = torch.cat(
        [
            packed_blocks(tokenizer, every, block_length, f"{seed} {epoch}")
            for epoch in range(epochs)
        ]
    )
    config = TrainingConfig(steps=len(blocks) // batch_size, learning_rate=learning_rate)
    optimizer = torch.optim.AdamW(model.parameters(), learning_rate, weight_decay=0.01, fused=True)
    device = model.device
    losses = []
    model.train()
    for step in tqdm(range(config.steps), desc="pretrain", unit="step", disable=None):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(step, config)
        batch = blocks[step * batch_size : (step + 1) * batch_size].to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), LARGEST_GRADIENT_NORM)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    model.train(False)
    return float(torch.stack(losses[-max(1, len(losses) // 10) :]).mean())
