"""Sentence vectors of many layers from one forward pass per sentence; retrieval on a live model.

Shapes: n sentences, C hidden size, L decoder blocks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from crossalign.argument_checks import check_option
from crossalign.evaluation.vectors.retrieval import RetrievalRow, retrieval_rows
from crossalign.models.encode import pooled, token_batches
from crossalign.models.hidden_states import check_layer, eval_mode, hidden_size, num_layers
from crossalign.models.layer_states import visit_layers
from crossalign.pooling.choices import POOL_TOKENS, POOLINGS, Center, Pooling, PoolTokens
from crossalign.pooling.content_tokens import content_mask, special_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def encode_layers(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    sentences: Sequence[str],
    layers: Sequence[int],
    *,
    pooling: Pooling = "mean",
    pool_tokens: PoolTokens = "all",
    batch_size: int = 64,
    max_length: int | None = None,
    normalize: bool = True,
    out: Mapping[int, Tensor] | None = None,
    progress: str = "",
) -> dict[int, Tensor]:
    """What encode gives for each of the layers, from one pass over the sentences.

    Each layer's states are pooled when the forward passes them and dropped; no block past the last
    layer asked for runs, nor the output embedding.

    Args:
        model, tokenizer, sentences, pooling, pool_tokens, batch_size, normalize: as in encode; the
            model runs where it is.
        layers: as in hidden_states_at; negative ones count from the end.
        max_length: tokens beyond are cut; None: those beyond what model and tokenizer take.
        out: layer, as given in layers -> (n, C) float32 on the CPU, to write into (say, a
            memory-mapped file). None: new tensors.
        progress: description of a progress bar (needs tqdm), shown on a terminal; "" for none.

    Returns:
        layer, as given -> (n, C) float32 on the CPU.

    Raises:
        TypeError: a layer is no integer.
        ValueError: no layer, one out of range, unknown pooling, batch_size or max_length below 1,
            or out of another shape.

    Cost: one forward up to the last layer; holds a batch, 64 batches of token ids, and the result.
    """
    _check_options(batch_size, max_length, pooling, pool_tokens)
    resolved = resolve_layers("encode_layers", model, layers)
    shapes = {layer: (len(sentences), hidden_size(model, layer)) for layer in layers}
    if out is None:
        out = {layer: torch.zeros(shape) for layer, shape in shapes.items()}
    for layer, shape in shapes.items():
        if layer not in out or tuple(out[layer].shape) != shape:
            raise ValueError(f"encode_layers: out must hold a {shape} tensor for layer {layer}")
    unique = sorted(set(resolved))
    special = special_tokens(tokenizer, pool_tokens)
    with eval_mode(model), torch.no_grad():
        windows = token_batches(model, tokenizer, sentences, batch_size, max_length)
        for rows, inputs in _with_bar(windows, len(sentences), progress):
            vectors = _pooled_states(model, unique, inputs, special, pooling, normalize)
            for layer, index in zip(layers, resolved, strict=True):
                out[layer][rows] = vectors[index]
    return {layer: out[layer] for layer in layers}


def resolve_layers(function: str, model: nn.Module, layers: Sequence[int]) -> list[int]:
    """The layers as 0 to L, in the given order. Raises TypeError or ValueError, as check_layer."""
    if not layers:
        raise ValueError(f"{function}: layers must name one layer at least")
    for layer in layers:
        check_layer(function, model, layer)
    return [layer % (num_layers(model) + 1) for layer in layers]


def retrieval_by_layer(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    sentences: Mapping[str, Sequence[str]],
    layers: Sequence[int],
    *,
    pooling: Pooling = "mean",
    pool_tokens: PoolTokens = "all",
    center: Center = "side",
    batch_size: int = 64,
    max_length: int | None = None,
) -> list[RetrievalRow]:
    """Retrieval scores of a live model, for use during training: one forward pass per sentence.

    Args:
        model, tokenizer, layers, pooling, pool_tokens, batch_size, max_length: as in encode_layers.
        sentences: language -> sentences; line k of every language means the same.
        center: which mean the centered scores go without, as in retrieval_rows.

    Returns:
        The rows of every layer and pair of languages, layer by layer.
    """
    vectors = {
        language: encode_layers(
            model,
            tokenizer,
            lines,
            layers,
            pooling=pooling,
            pool_tokens=pool_tokens,
            batch_size=batch_size,
            max_length=max_length,
            normalize=False,
        )
        for language, lines in sentences.items()
    }
    return [
        row
        for layer in layers
        for row in retrieval_rows(
            {code: each[layer] for code, each in vectors.items()}, layer, center
        )
    ]


def _check_options(batch_size: int, max_length: int | None, pooling: str, pool_tokens: str) -> None:
    if batch_size < 1:
        raise ValueError(f"encode_layers: batch_size must be at least 1, got {batch_size}")
    if max_length is not None and max_length < 1:
        raise ValueError(f"encode_layers: max_length must be at least 1, got {max_length}")
    check_option("encode_layers", "pooling", pooling, POOLINGS)
    check_option("encode_layers", "pool_tokens", pool_tokens, POOL_TOKENS)


def _pooled_states(
    model: nn.Module,
    layers: list[int],
    inputs: dict[str, Tensor],
    special: Tensor,
    pooling: Pooling,
    normalize: bool,
) -> dict[int, Tensor]:
    """Layer -> (batch, C) float32 on the CPU. layers: from 0 to L; special: tokens left out."""
    vectors: dict[int, Tensor] = {}
    mask = content_mask(**inputs, special_token_ids=special)

    def keep(layer: int, hidden: Tensor) -> None:
        vectors[layer] = pooled(hidden, mask, pooling, normalize)

    visit_layers(model, layers, keep, **inputs)
    return vectors


def _with_bar(
    batches: Iterable[tuple[list[int], dict[str, Tensor]]], total: int, description: str
) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
    if not description:
        yield from batches
        return
    from tqdm.auto import tqdm

    with tqdm(total=total, desc=description, unit="sentence", disable=None) as bar:
        for rows, inputs in batches:
            yield rows, inputs
            bar.update(len(rows))
