"""What the demo measures of a model, before and after: retrieval, neighbours, perplexity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import Tensor
from tqdm.auto import tqdm
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from crossalign.demo.language_model import perplexity
from crossalign.evaluation.vectors.layer_embeddings import encode_layers
from crossalign.evaluation.vectors.retrieval import (
    RetrievalRow,
    retrieval_rows,
    same_language_neighbours,
)
from crossalign.models.hidden_states import num_layers


class Measurement(NamedTuple):
    """rows: of every layer and language pair. neighbours: per layer, the share of sentences whose
    nearest neighbour speaks their own language. perplexities: per language. vectors: language ->
    (n, C), unit length, of the aligned layer."""

    rows: list[RetrievalRow]
    neighbours: list[float]
    perplexities: dict[str, float]
    vectors: dict[str, Tensor]

    def accuracy(self, layer: int) -> float:
        """Mean over language pairs and both directions."""
        chosen = [row.scores.accuracy for row in self.rows if row.layer == layer]
        return sum(chosen) / len(chosen)


def measure(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    held_out: Mapping[str, Sequence[str]],
    *,
    aligned_layer: int,
    description: str,
) -> Measurement:
    """held_out: language -> the same sentences, in the same order."""
    rows: list[RetrievalRow] = []
    neighbours: list[float] = []
    aligned: dict[str, Tensor] = {}
    layers = range(num_layers(model) + 1)
    of_all_layers = {
        language: encode_layers(model, tokenizer, sentences, layers, batch_size=128)
        for language, sentences in held_out.items()
    }
    for layer in tqdm(layers, desc=description, unit="layer", disable=None):
        vectors = {language: of_layer[layer] for language, of_layer in of_all_layers.items()}
        rows += retrieval_rows(vectors, layer)
        neighbours.append(same_language_neighbours(vectors))
        if layer == aligned_layer:
            aligned = vectors
    perplexities = {
        language: perplexity(model, tokenizer, sentences)
        for language, sentences in held_out.items()
    }
    return Measurement(rows, neighbours, perplexities, aligned)


def accuracy_table(before: Measurement, after: Measurement, aligned_layer: int) -> str:
    """Text: retrieval accuracy in percent, before and after, per language pair and layer."""
    rows: dict[str, list[str]] = {}
    for old, new in zip(before.rows, after.rows, strict=True):
        name = f"{old.source_language}-{old.target_language}"
        rows.setdefault(name, []).append(_change(old.scores.accuracy, new.scores.accuracy))
    layers = range(len(before.neighbours))
    rows["mean"] = [_change(before.accuracy(layer), after.accuracy(layer)) for layer in layers]
    headings = [f"layer {layer}{'*' if layer == aligned_layer else ''}" for layer in layers]
    lines = [("", headings), *rows.items()]
    title = (
        f"Sentences that find their translation among {before.rows[0].scores.num_pairs}, in %, "
        "before > after\nalignment (* aligned layer; layer 0: token embeddings)\n"
    )
    return title + "\n".join(
        name.ljust(6) + "".join(cell.rjust(14) for cell in cells) for name, cells in lines
    )


def _change(before: float, after: float) -> str:
    return f"{100 * before:.1f} > {100 * after:5.1f}"
