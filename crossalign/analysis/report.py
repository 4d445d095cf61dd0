"""report.html: what an analysis found, in one file that needs no other."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined

from crossalign.analysis.measurement import LayerMeasurement
from crossalign.analysis.measures import MEASURES, format_number

LAYER_SHOWN = "Layer shown"  # the fact that says why this layer
_LONGEST_SHOWN = 240  # characters of a sentence
_MOST_OPEN_PAIRS = 21  # more rows are folded up until asked for
_TILES = ("accuracy", "margin_accuracy", "language_identification", "center_distance")
_OF_LANGUAGES = tuple(
    measure
    for measure in MEASURES
    if measure.key in ("language_identification", "uniformity", "mean_cosine", "iso_score")
)


class Tile(NamedTuple):
    """before: "" where there is nothing to compare with."""

    title: str
    before: str
    value: str
    note: str


class Example(NamedTuple):
    """A sentence, its translation, and per model (heading, what it finds, whether rightly)."""

    sentence: str
    translation: str
    found: list[tuple[str, str, bool]]


class Row(NamedTuple):
    """cells: (value, value of "before" or ""), each as text."""

    name: str
    is_shown: bool
    cells: list[tuple[str, str]]


def render_report(
    sentences: Mapping[str, Sequence[str]],
    models: Mapping[str, Sequence[LayerMeasurement]],
    shown_layer: int,
    pictures: Mapping[str, bytes],
    facts: Mapping[str, str],
) -> str:
    """The page. Arguments as in results.write_results; pictures: name -> PNG."""
    shown = {
        name: next(layer for layer in layers if layer.layer == shown_layer)
        for name, layers in models.items()
    }
    *earlier, studied = shown.values()
    before = earlier[0] if earlier else None
    languages = list(sentences)
    return str(
        _template().render(
            comparing=before is not None,
            layer=shown_layer,
            why_layer=facts[LAYER_SHOWN].partition(", ")[2],
            languages=languages,
            num_lines=len(sentences[languages[0]]),
            num_drawn=len(next(iter(studied.points.values()))),
            tiles=_tiles(before, studied),
            models=[(name, _heading(name)) for name in models],
            variance_shares={name: layer.variance_share for name, layer in shown.items()},
            has_layers=len(models[next(iter(models))]) > 1,
            pictures={name: base64.b64encode(png).decode() for name, png in pictures.items()},
            measures=MEASURES,
            language_measures=_OF_LANGUAGES,
            layer_rows=_layer_rows(models, shown_layer),
            pair_rows=_pair_rows(before, studied),
            fold_pairs=len(studied.pairs) > _MOST_OPEN_PAIRS,
            language_rows=_language_rows(before, studied),
            examples=_examples(sentences, shown),
            facts=list(facts.items()),
        )
    )


def _template() -> Any:
    environment = Environment(
        loader=PackageLoader("crossalign.analysis", "."), autoescape=True, undefined=StrictUndefined
    )
    return environment.get_template("report.html")


def _heading(name: str) -> str:
    return {"before": "Before", "after": "After", "model": "The model"}[name]


def _tiles(before: LayerMeasurement | None, studied: LayerMeasurement) -> list[Tile]:
    num_pairs, num_languages = studied.pairs[0].retrieval.num_pairs, len(studied.points)
    notes = {
        "accuracy": "sentences find their translation first, by cosine; by chance "
        f"{100 / num_pairs:.2g} %",
        "margin_accuracy": "find it first by ratio margin, which allows for crowded neighborhoods",
        "language_identification": "are nearest to the center of their own language; by chance "
        f"{100 / num_languages:.3g} %",
        "center_distance": "distance between the centers of two languages, on the unit sphere",
    }
    old = before.summary() if before else {}
    new = studied.summary()
    chosen = [measure for measure in MEASURES if measure.key in _TILES]
    return [
        Tile(
            measure.title,
            measure.format(old[measure.key]) if old else "",
            measure.format(new[measure.key]),
            notes[measure.key],
        )
        for measure in chosen
    ]


def _layer_rows(models: Mapping[str, Sequence[LayerMeasurement]], shown_layer: int) -> list[Row]:
    *earlier, studied = models.values()
    rows = []
    for index, layer in enumerate(studied):
        new, old = layer.summary(), earlier[0][index].summary() if earlier else {}
        cells = [
            (each.format(new[each.key]), each.format(old[each.key]) if old else "")
            for each in MEASURES
        ]
        rows.append(Row(str(layer.layer), layer.layer == shown_layer, cells))
    return rows


def _pair_rows(before: LayerMeasurement | None, studied: LayerMeasurement) -> list[Row]:
    """Both directions' shares, rank and margin of each pair of languages."""

    def texts(measured: LayerMeasurement, index: int) -> list[str]:
        pair = measured.pairs[index]
        scores, margin = pair.retrieval, pair.margin
        of_pair = {
            value.measure: value.value for value in measured.geometry if value[1:3] == pair[:2]
        }
        shares = (
            *(scores.forward_accuracy, scores.backward_accuracy),
            *(margin.forward_margin_accuracy, margin.backward_margin_accuracy),
        )
        others = (
            *(scores.reciprocal_rank, margin.mean_margin),
            *(of_pair["alignment"], of_pair["center_distance"]),
        )
        return [f"{100 * share:.1f}" for share in shares] + [
            format_number(value) for value in others
        ]

    rows = []
    for index, pair in enumerate(studied.pairs):
        new = texts(studied, index)
        old = texts(before, index) if before else [""] * len(new)
        name = f"{pair.source_language} – {pair.target_language}"
        rows.append(Row(name, False, list(zip(new, old, strict=True))))
    return rows


def _language_rows(before: LayerMeasurement | None, studied: LayerMeasurement) -> list[Row]:
    def texts(measured: LayerMeasurement, language: str) -> list[str]:
        values = {
            value.measure: value.value
            for value in measured.geometry
            if value[1:3] == (language, "")
        }
        return [measure.format(values[measure.key]) for measure in _OF_LANGUAGES]

    rows = []
    for language in studied.points:
        new = texts(studied, language)
        old = texts(before, language) if before else [""] * len(new)
        rows.append(Row(language, False, list(zip(new, old, strict=True))))
    return rows


def _examples(
    sentences: Mapping[str, Sequence[str]], shown: Mapping[str, LayerMeasurement]
) -> list[Example]:
    sources, targets = list(sentences.values())[:2]
    num_examples = len(next(iter(shown.values())).nearest)
    return [
        Example(
            _shortened(sources[index]),
            _shortened(targets[index]),
            [
                (
                    _heading(name).lower(),
                    _shortened(targets[layer.nearest[index]]),
                    targets[layer.nearest[index]] == targets[index],
                )
                for name, layer in shown.items()
            ],
        )
        for index in range(num_examples)
    ]


def _shortened(sentence: str) -> str:
    if len(sentence) <= _LONGEST_SHOWN:
        return sentence
    return sentence[: _LONGEST_SHOWN - 1].rstrip() + "…"
