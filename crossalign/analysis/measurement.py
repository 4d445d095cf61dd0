"""What is measured of a model: retrieval and geometry of every layer, from one forward pass.

Shapes: n lines, l languages, C hidden size.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from tqdm.auto import tqdm

from crossalign.analysis.memory_mapped_vectors import memory_mapped_vectors
from crossalign.analysis.parallel_text import same_meaning_ids
from crossalign.evaluation.vectors.geometry import (
    alignment,
    center_distance,
    language_identification,
    spread,
    uniformity,
)
from crossalign.evaluation.vectors.layer_embeddings import encode_layers
from crossalign.evaluation.vectors.margin import MarginScores, margin_scores
from crossalign.evaluation.vectors.projection import project_to_plane
from crossalign.evaluation.vectors.retrieval import RetrievalScores, retrieval_scores
from crossalign.evaluation.vectors.tiles import row_blocks, unit_rows
from crossalign.models.hidden_states import hidden_size
from crossalign.pooling.choices import Center, Pooling, PoolTokens

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MAX_DRAWN = 250  # lines per picture
MAX_POINTS = 1200  # points per picture, of all languages
NUM_EXAMPLES = 5
CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class AnalysisOptions:
    """How sentences become vectors; layers are 0 to L."""

    layers: Sequence[int]
    pooling: Pooling = "mean"
    pool_tokens: PoolTokens = "all"
    center: Center = "none"
    batch_size: int = 64
    max_length: int | None = None
    seed: int = 0


class PairScores(NamedTuple):
    """The retrieval scores of two languages at one layer; `centered` is of the vectors without the
    mean of their language, or with center="batch" of all languages."""

    source_language: str
    target_language: str
    retrieval: RetrievalScores
    margin: MarginScores
    centered: RetrievalScores


class GeometryValue(NamedTuple):
    """One value of a measure: of two languages, of one (other_language ""), or of all (both "")."""

    measure: str
    language: str
    other_language: str
    value: float


class LayerMeasurement(NamedTuple):
    """Geometry, points and nearest are of the vectors as the options center them.

    points: language -> (lines, 2) of the drawn lines. nearest: for the first sentences of the first
    language, the line of the second language's nearest sentence.
    """

    layer: int
    pairs: list[PairScores]
    geometry: list[GeometryValue]
    points: dict[str, Tensor]
    variance_share: float
    nearest: list[int]

    def values(self) -> dict[str, list[float]]:
        """Each measure's values: of languages or pairs, both directions taken together."""
        values: dict[str, list[float]] = {
            "accuracy": [pair.retrieval.accuracy for pair in self.pairs],
            "centered_accuracy": [pair.centered.accuracy for pair in self.pairs],
            "reciprocal_rank": [pair.retrieval.reciprocal_rank for pair in self.pairs],
            "margin_accuracy": [pair.margin.accuracy for pair in self.pairs],
            "mean_margin": [pair.margin.mean_margin for pair in self.pairs],
        }
        for measured in self.geometry:
            values.setdefault(measured.measure, []).append(measured.value)
        return values

    def summary(self) -> dict[str, float]:
        """The mean of each measure's values."""
        return {name: statistics.fmean(values) for name, values in self.values().items()}


def measure_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sentences: Mapping[str, Sequence[str]],
    options: AnalysisOptions,
    *,
    scratch_directory: Path,
    description: str,
) -> list[LayerMeasurement]:
    """Measures every layer asked for; each sentence passes through the model once.

    Args:
        model, tokenizer: on the device where to compute; measures are computed there, too.
        sentences: language -> lines; line k means the same in every language.
        options: the layers and how to pool them.
        scratch_directory: where 4 * lines * languages * layers * C bytes find room meanwhile.
        description: of the progress bars.
    """
    languages = list(sentences)
    num_lines = len(sentences[languages[0]])
    vectors = {
        layer: memory_mapped_vectors(
            scratch_directory, num_lines * len(languages), hidden_size(model, layer)
        )
        for layer in options.layers
    }
    for language, lines in sentences.items():
        encode_layers(
            model,
            tokenizer,
            lines,
            options.layers,
            pooling=options.pooling,
            pool_tokens=options.pool_tokens,
            batch_size=options.batch_size,
            max_length=options.max_length,
            normalize=False,  # what is centered has the lengths that it has in training
            out={
                layer: _by_language(whole, languages)[language] for layer, whole in vectors.items()
            },
            progress=f"{description}: encode {language}",
        )
    work = _LayerWork(sentences, options, model.device)
    num_pairs = len(work.ids)
    title = f"{description}: measure"
    with tqdm(total=len(vectors) * num_pairs, desc=title, unit="pair", disable=None) as bar:
        return [
            work.measure(layer, vectors.pop(layer), bar)  # gives its disk space back
            for layer in options.layers
        ]


def _by_language(whole: Tensor, languages: Sequence[str]) -> dict[str, Tensor]:
    """Views of the rows of each language."""
    return dict(zip(languages, whole.chunk(len(languages)), strict=True))


class _LayerWork:
    """What every layer of every model shares."""

    def __init__(
        self,
        sentences: Mapping[str, Sequence[str]],
        options: AnalysisOptions,
        device: torch.device,
    ) -> None:
        self.languages = list(sentences)
        self.seed, self.center, self.device = options.seed, options.center, device
        num_lines = len(sentences[self.languages[0]])
        self.drawn = drawn_lines(num_lines, len(self.languages), self.seed)
        self.ids = {
            names: torch.tensor(same_meaning_ids(sentences, *names))
            for names in itertools.combinations(self.languages, 2)
        }

    def measure(self, layer: int, whole: Tensor, bar: Any) -> LayerMeasurement:
        for block in row_blocks(len(whole), 4096):
            if not bool(whole[block].isfinite().all()):
                raise ValueError(f"sentence vectors of layer {layer} are NaN or infinite")
        vectors = _by_language(whole, self.languages)
        plain = []
        for (source, target), ids in self.ids.items():
            plain.append(
                margin_scores(vectors[source], vectors[target], ids=ids, device=self.device)
            )
            bar.update()
        shown = self._shown(whole, vectors) if self.center == "none" else None
        self._subtract_means(whole, vectors)
        pairs = []
        for (names, ids), scores in zip(self.ids.items(), plain, strict=True):
            sides = (vectors[name] for name in names)
            centered = retrieval_scores(*sides, ids=ids, device=self.device)
            pairs.append(PairScores(*names, *scores, centered))
        shown = shown or self._shown(whole, vectors)
        return LayerMeasurement(layer, pairs, **shown)

    def _shown(self, whole: Tensor, vectors: Mapping[str, Tensor]) -> dict[str, Any]:
        """All that is not retrieval, of the vectors as they are now."""
        projection = project_to_plane(
            torch.cat([unit_rows(vectors[name][self.drawn], CPU) for name in self.languages])
        )
        return {
            "geometry": list(self._geometry(whole, vectors)),
            "points": _by_language(projection.points, self.languages),
            "variance_share": sum(projection.variance_shares),
            "nearest": _nearest(*(vectors[language] for language in self.languages[:2])),
        }

    def _subtract_means(self, whole: Tensor, vectors: Mapping[str, Tensor]) -> None:
        """In place, a block at a time: the vectors may be on the disk."""
        for part in (whole,) if self.center == "batch" else vectors.values():
            blocks = [part[block] for block in row_blocks(len(part), 4096)]
            mean = sum(block.double().sum(dim=0) for block in blocks) / len(part)
            for block in blocks:
                block.copy_(block.double() - mean)

    def _geometry(self, whole: Tensor, vectors: Mapping[str, Tensor]) -> Iterator[GeometryValue]:
        device = self.device
        spreads = {language: spread(rows, device=device) for language, rows in vectors.items()}
        for one, other in self.ids:
            value = alignment(vectors[one], vectors[other], device=device)
            yield GeometryValue("alignment", one, other, value)
            value = center_distance(spreads[one], spreads[other])
            yield GeometryValue("center_distance", one, other, value)
        identified = language_identification(vectors, seed=self.seed, device=device)
        for language, rows in vectors.items():
            value = uniformity(rows, seed=self.seed, device=device)
            yield GeometryValue("uniformity", language, "", value)
            yield GeometryValue("mean_cosine", language, "", spreads[language].mean_cosine)
            yield GeometryValue("iso_score", language, "", spreads[language].iso_score)
            yield GeometryValue("language_identification", language, "", identified[language])
        value = uniformity(whole, seed=self.seed, device=device)
        yield GeometryValue("uniformity_of_all", "", "", value)


def drawn_lines(num_lines: int, num_languages: int, seed: int) -> Tensor:
    """The lines whose sentences the pictures show, at random but in order."""
    count = min(num_lines, MAX_DRAWN, max(3, MAX_POINTS // num_languages))
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(num_lines, generator=generator)[:count].sort().values


def _nearest(source: Tensor, target: Tensor, *, chunk_size: int = 4096) -> list[int]:
    """The row of target nearest to each of the first rows of source."""
    queries = unit_rows(source[:NUM_EXAMPLES], CPU)
    blocks = [target[block] for block in row_blocks(len(target), chunk_size)]
    similarity = torch.cat([queries @ unit_rows(block, CPU).T for block in blocks], dim=1)
    nearest: list[int] = similarity.argmax(dim=1).tolist()
    return nearest
