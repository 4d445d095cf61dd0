"""Sentence vectors: pooled hidden states of one layer, and the batches of tokens they come from.

Shapes: B sentences, T tokens, C hidden size, n sentences in all.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from crossalign.argument_checks import check_option
from crossalign.models.aligned_as import choices_of
from crossalign.models.hidden_states import (
    check_layer,
    eval_mode,
    hidden_size,
    hidden_states_at,
    text_config,
)
from crossalign.pooling.choices import POOL_TOKENS, POOLINGS, Center, Pooling, PoolTokens
from crossalign.pooling.content_tokens import content_mask, special_tokens
from crossalign.pooling.functions import pool
from crossalign.precision import norm_divisor

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MAX_POSITIONS = "max_position_embeddings"  # absent where positions are not bounded (BLOOM)
_NO_LIMIT = 2**31  # a tokenizer that knows no limit claims 1e30
_BATCHES_PER_WINDOW = 64


def encode(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    sentences: Sequence[str],
    *,
    layer: int = 1,
    pooling: Pooling = "mean",
    pool_tokens: PoolTokens | None = None,
    center: Center | None = None,
    batch_size: int = 64,
    normalize: bool = True,
    device: torch.device | str | None = None,
    progress: bool = False,
) -> Tensor:
    """Sentence vectors: pooled hidden states of one layer, in the order of the sentences.

    Unless they are centered, a sentence's vector does not depend on the others: padding goes to the
    right and is masked, whatever the tokenizer's padding side; one without a padding token will do.

    Args:
        model: a Hugging Face causal LM; put into eval mode for the call, then back.
        tokenizer: its tokenizer; left as it is. Sentences beyond the model's or the tokenizer's
            greatest length are truncated.
        sentences: a list of strings.
        layer: as in hidden_states_at.
        pooling: "mean", "last" or "max".
        pool_tokens: "all", or "content": without the tokenizer's special tokens.
        center: "batch" subtracts the mean of the vectors of all sentences; "none" does not. None,
            here and above: as the model was aligned, else "all" and "none".
        batch_size: sentences run at once, sorted by length.
        normalize: scale each vector to unit length.
        device: where to run. The model is moved there and stays there. None: where it is.
        progress: show a bar (needs tqdm).

    Returns:
        (n, C) float32 on the CPU, without gradient. A sentence without tokens gives zeros.

    Raises:
        TypeError: sentences is one string, or holds something else than strings.
        ValueError: batch_size below 1, layer out of range, an unknown choice.

    Examples:
        >>> encode(model, tokenizer, ["w1 w2", "w3"], layer=1).shape  # of a model of width 32
        torch.Size([2, 32])
    """
    sentences = _checked_sentences(sentences)
    if batch_size < 1:
        raise ValueError(f"encode: batch_size must be at least 1, got {batch_size}")
    if device is not None:
        model.to(device)
    check_layer("encode", model, layer)
    check_option("encode", "pooling", pooling, POOLINGS)
    pool_tokens, center = choices_of(model, pool_tokens, center)
    check_option("encode", "pool_tokens", pool_tokens, POOL_TOKENS)
    center = "batch" if center == "side" else center  # all sentences are one side here
    check_option("encode", "center", center, ("none", "batch"))
    special = special_tokens(tokenizer, pool_tokens)
    vectors = torch.zeros(len(sentences), hidden_size(model, layer))
    batches: Iterable[tuple[list[int], dict[str, Tensor]]]
    batches = token_batches(model, tokenizer, sentences, batch_size, window=len(sentences))
    if progress:
        from tqdm.auto import tqdm

        batches = tqdm(batches, "encode", math.ceil(len(sentences) / batch_size), unit="batch")
    with eval_mode(model), torch.no_grad():
        for rows, inputs in batches:
            hidden = hidden_states_at(model, layer, **inputs)
            mask = content_mask(**inputs, special_token_ids=special)
            vectors[rows] = pooled(hidden, mask, pooling, normalize and center == "none")
    if center == "batch":
        vectors = (vectors - vectors.double().mean(dim=0)).float()
        if normalize:
            vectors /= norm_divisor(vectors.norm(dim=1, keepdim=True))
    return vectors


def token_batches(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    sentences: Sequence[str],
    batch_size: int,
    max_length: int | None = None,
    *,
    window: int | None = None,
) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
    """Rows and inputs of each batch, the longest sentences of a window first.

    window: sentences tokenized and sorted by length at a time; None: those of 64 batches.
    """
    window = window or batch_size * _BATCHES_PER_WINDOW
    for start in range(0, len(sentences), window):
        token_ids = tokenize(model, tokenizer, list(sentences[start : start + window]), max_length)
        longest_first = sorted(range(len(token_ids)), key=lambda row: -len(token_ids[row]))
        for first in range(0, len(token_ids), batch_size):
            rows = longest_first[first : first + batch_size]
            inputs = pad_right([token_ids[row] for row in rows], input_device(model))
            yield [start + row for row in rows], inputs


def pooled(hidden: Tensor, mask: Tensor, pooling: Pooling, normalize: bool) -> Tensor:
    """(B, C) float32 on the CPU, from the states of any device."""
    return pool(hidden.float(), mask.to(hidden.device), pooling, normalize=normalize).cpu()


def _checked_sentences(sentences: Sequence[str]) -> list[str]:
    if isinstance(sentences, str):
        raise TypeError(
            "encode: sentences must be a list of strings, got one str; put it in a list"
        )
    sentences = list(sentences)
    for sentence in sentences:
        if not isinstance(sentence, str):
            raise TypeError(
                f"encode: sentences must hold strings, got an entry of type "
                f"{type(sentence).__name__}"
            )
    return sentences


def longest_input(model: Any, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Tokens that both the model and the tokenizer take; None where neither sets a limit."""
    limits = (tokenizer.model_max_length, getattr(text_config(model), _MAX_POSITIONS, None))
    return min((limit for limit in limits if limit and limit < _NO_LIMIT), default=None)


def tokenize(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    sentences: list[str],
    max_length: int | None = None,
) -> list[list[int]]:
    """Token ids without padding, cut at what the model and the tokenizer take, or at max_length."""
    limits = (longest_input(model, tokenizer), max_length)
    limit = min((limit for limit in limits if limit is not None), default=None)
    encoded = tokenizer(
        sentences, truncation=limit is not None, max_length=limit, return_attention_mask=False
    )
    ids: list[list[int]] = encoded["input_ids"]
    return ids


def pad_right(token_ids: list[list[int]], device: torch.device) -> dict[str, Tensor]:
    """input_ids and attention_mask (B, T); T is at least 1, for sentences without tokens."""
    width = max([1, *(len(ids) for ids in token_ids)])
    # Any id of the vocabulary will do as padding: masked positions are not read.
    input_ids = torch.zeros(len(token_ids), width, dtype=torch.long)
    attention_mask = torch.zeros_like(input_ids)
    for row, ids in enumerate(token_ids):
        input_ids[row, : len(ids)] = torch.tensor(ids, dtype=torch.long)
        attention_mask[row, : len(ids)] = 1
    return {"input_ids": input_ids.to(device), "attention_mask": attention_mask.to(device)}


def input_device(model: Any) -> torch.device:
    """Where the token embedding is: a model spread over several devices takes its input there."""
    device: torch.device = next(model.get_input_embeddings().parameters()).device
    return device
