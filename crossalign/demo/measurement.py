"""What the demo measures of a model, before and after: retrieval, neighbors, perplexity."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor
from torch.nn.functional import normalize
from tqdm.auto import tqdm

from crossalign.data.languages import LANGUAGE_NAMES
from crossalign.evaluation.token_scores import Request, continuation_log_probabilities
from crossalign.evaluation.vectors.layer_embeddings import encode_layers
from crossalign.evaluation.vectors.retrieval import (
    RetrievalRow,
    retrieval_rows,
    same_language_neighbors,
)
from crossalign.models.encode import tokenize
from crossalign.models.hidden_states import eval_mode, num_layers
from crossalign.pooling.choices import PoolTokens

MOST_SHOWN = 5  # layers in the table on the terminal


class Measurement(NamedTuple):
    """rows: of every layer and language pair. neighbors: per layer, the share of sentences whose
    nearest neighbor speaks their own language. perplexities: per language. vectors: language ->
    (n, C), unit length, of the aligned layer."""

    rows: list[RetrievalRow]
    neighbors: list[float]
    perplexities: dict[str, float]
    vectors: dict[str, Tensor]

    def accuracy(self, layer: int) -> float:
        """Mean over language pairs and both directions."""
        chosen = [row.scores.accuracy for row in self.rows if row.layer == layer]
        return sum(chosen) / len(chosen)

    def centered_accuracy(self, layer: int) -> float:
        """The same of vectors without the mean of their language."""
        chosen = [row.centered.accuracy for row in self.rows if row.layer == layer]
        return sum(chosen) / len(chosen)


def measure(
    model: Any,
    tokenizer: Any,
    held_out: Mapping[str, Sequence[str]],
    *,
    aligned_layer: int,
    description: str,
    pool_tokens: PoolTokens = "all",
    num_scored: int | None = None,
    batch_size: int = 128,
) -> Measurement:
    """held_out: language -> the same sentences, in the same order. num_scored: sentences of each
    language for its perplexity; None: all."""
    rows: list[RetrievalRow] = []
    neighbors: list[float] = []
    aligned: dict[str, Tensor] = {}
    layers = range(num_layers(model) + 1)
    of_all_layers = {
        language: encode_layers(
            *(model, tokenizer, sentences, layers),
            pool_tokens=pool_tokens,
            batch_size=batch_size,
            normalize=False,
        )
        for language, sentences in held_out.items()
    }
    for layer in tqdm(layers, desc=description, unit="layer", disable=None):
        vectors = {language: of_layer[layer] for language, of_layer in of_all_layers.items()}
        rows += retrieval_rows(vectors, layer)
        neighbors.append(same_language_neighbors(vectors))
        if layer == aligned_layer:
            aligned = {language: normalize(each, dim=1) for language, each in vectors.items()}
    perplexities = {
        language: perplexity(model, tokenizer, sentences[:num_scored], batch_size=batch_size)
        for language, sentences in held_out.items()
    }
    return Measurement(rows, neighbors, perplexities, aligned)


def perplexity(model: Any, tokenizer: Any, texts: Sequence[str], *, batch_size: int = 128) -> float:
    """exp of the mean next-token loss per token: the first token of a text is given, and its end
    counts where the tokenizer has a token for it."""
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    token_ids = [[*ids, *end] for ids in tokenize(model, tokenizer, list(texts))]
    requests = [Request(ids[:1], ids[1:]) for ids in token_ids if len(ids) > 1]
    with eval_mode(model):
        scores = continuation_log_probabilities(model, requests, batch_size=batch_size)
    return math.exp(-sum(scores) / sum(len(each.continuation) for each in requests))


def accuracy_table(before: Measurement, after: Measurement, aligned_layer: int) -> str:
    """Text: retrieval accuracy in percent, before and after, per language pair and layer, of as
    many layers as 80 columns hold."""
    layers = _shown_layers(len(before.neighbors), aligned_layer)
    rows: dict[str, list[str]] = {}
    for old, new in zip(before.rows, after.rows, strict=True):
        if old.layer in layers:
            name = f"{old.source_language}-{old.target_language}"
            rows.setdefault(name, []).append(_change(old.scores.accuracy, new.scores.accuracy))
    rows["mean"] = [_change(before.accuracy(layer), after.accuracy(layer)) for layer in layers]
    centered = [(before.centered_accuracy(each), after.centered_accuracy(each)) for each in layers]
    rows["center"] = [_change(*each) for each in centered]
    headings = [f"layer {layer}{'*' if layer == aligned_layer else ''}" for layer in layers]
    lines = [("", headings), *rows.items()]
    title = (
        f"Sentences that find their translation among {before.rows[0].scores.num_pairs}, in %, "
        "before > after\nalignment (* aligned layer; layer 0: token embeddings; center:\n"
        "the mean of vectors less that of their language)\n"
    )
    return title + "\n".join(
        name.ljust(6) + "".join(cell.rjust(14) for cell in cells) for name, cells in lines
    )


def gain_and_cost(before: Measurement, after: Measurement, layer: int) -> str:
    """In words: what retrieval at this layer gained, and what it cost in perplexity."""
    changes = {
        language: after.perplexities[language] / old - 1
        for language, old in before.perplexities.items()
    }
    mean = sum(changes.values()) / len(changes)
    worst = max(changes, key=lambda language: changes[language])
    if changes[worst] < 0:
        most = "it fell in every language"
    else:
        old, new = before.perplexities[worst], after.perplexities[worst]
        most = f"most in {LANGUAGE_NAMES[worst]}, from {old:.2f} to {new:.2f}"
    return (
        f"Gained: at layer {layer}, {100 * after.accuracy(layer):.1f} % of sentences find their "
        f"translation first, {100 * before.accuracy(layer):.1f} % before. Cost: perplexity "
        f"{'rose' if mean >= 0 else 'fell'} by {100 * abs(mean):.1f} % in the mean of the "
        f"languages, {most}."
    )


def _shown_layers(count: int, aligned_layer: int) -> list[int]:
    """All where they are few; else the aligned one, the last, and some in even steps."""
    if count <= MOST_SHOWN:
        return list(range(count))
    even = [round((count - 1) * each / (MOST_SHOWN - 2)) for each in range(MOST_SHOWN - 1)]
    return sorted({*even, aligned_layer})


def _change(before: float, after: float) -> str:
    return f"{100 * before:.1f} > {100 * after:5.1f}"
