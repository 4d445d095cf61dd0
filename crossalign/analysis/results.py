"""The files of an analysis: tables as CSV, pictures as PNG, report.html that shows them."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from crossalign.analysis.figures import (
    Curve,
    draw_curves,
    draw_languages,
    draw_languages_by_layer,
    draw_matrix,
)
from crossalign.analysis.measurement import LayerMeasurement, PairScores
from crossalign.analysis.measures import MEASURES
from crossalign.analysis.report import render_report
from crossalign.evaluation.vectors.margin import MarginScores
from crossalign.evaluation.vectors.retrieval import RetrievalScores, centered_names

Models = Mapping[str, Sequence[LayerMeasurement]]
MAX_LINKED = 6  # sentences whose translations lines join
MAX_LINES = 24  # of these lines in all: more hide the points


def write_results(
    directory: Path,
    sentences: Mapping[str, Sequence[str]],
    models: Models,
    shown_layer: int,
    facts: Mapping[str, str],
) -> None:
    """Writes everything into an empty directory.

    Args:
        directory: where to.
        sentences: language -> lines.
        models: "before" and "after", or "model" -> its layers.
        shown_layer: the layer of the pictures and tables that show one.
        facts: name -> value, what was analyzed and how; report.LAYER_SHOWN among them.
    """
    _write_csv(
        directory / "retrieval.csv",
        (
            *("model", "layer", "source_language", "target_language"),
            *(*RetrievalScores._fields, *MarginScores._fields, *centered_names()),
        ),
        (
            (name, layer.layer, *pair[:2], *pair.retrieval, *pair.margin, *pair.centered[1:])
            for name, layers in models.items()
            for layer in layers
            for pair in layer.pairs
        ),
    )
    _write_csv(
        directory / "geometry.csv",
        ("model", "layer", "measure", "language", "other_language", "value"),
        (
            (name, layer.layer, *value)
            for name, layers in models.items()
            for layer in layers
            for value in layer.geometry
        ),
    )
    _write_points(directory / "projection.csv", models, shown_layer)
    summaries = {
        name: {str(layer.layer): _without_nan(layer.summary()) for layer in layers}
        for name, layers in models.items()
    }
    record = {"facts": dict(facts), "shown_layer": shown_layer, "mean_by_layer": summaries}
    (directory / "analysis.json").write_text(
        json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    pictures = draw_pictures(models, shown_layer)
    for name, png in pictures.items():
        (directory / f"{name}.png").write_bytes(png)
    page = render_report(sentences, models, shown_layer, pictures, facts)
    (directory / "report.html").write_text(page, encoding="utf-8")


def _without_nan(values: Mapping[str, float]) -> dict[str, float | None]:
    """JSON has no NaN."""
    return {name: None if value != value else value for name, value in values.items()}


def draw_pictures(models: Models, shown_layer: int) -> dict[str, bytes]:
    """Name of the file without ".png" -> PNG."""
    pictures = {}
    for name, layers in models.items():
        (shown,) = (layer for layer in layers if layer.layer == shown_layer)
        num_linked = max(1, min(MAX_LINKED, MAX_LINES // len(shown.points)))
        pictures[f"projection_{name}"] = draw_languages(shown.points, num_linked=num_linked)
        pictures[f"matrix_{name}"] = draw_matrix(_matrix(shown.pairs), list(shown.points))
        if len(layers) > 1:
            points = {layer.layer: layer.points for layer in layers}
            pictures[f"projections_by_layer_{name}"] = draw_languages_by_layer(points)
    (first, *_) = next(iter(models.values()))
    chances = {
        "accuracy": 1 / first.pairs[0].retrieval.num_pairs,
        "centered_accuracy": 1 / first.pairs[0].retrieval.num_pairs,
        "margin_accuracy": 1 / first.pairs[0].retrieval.num_pairs,
        "language_identification": 1 / len(first.points),
    }
    for measure in MEASURES:
        factor = 100 if measure.is_share else 1
        chance = chances.get(measure.key)
        pictures[f"{measure.key}_by_layer"] = draw_curves(
            {name: _curve(layers, measure.key, factor) for name, layers in models.items()},
            label=measure.title + (", %" if measure.is_share else ""),
            shown_layer=shown_layer,
            is_percent=measure.is_share,
            chance=None if chance is None else factor * chance,
        )
    return pictures


def _curve(layers: Sequence[LayerMeasurement], key: str, factor: float) -> Curve:
    values = [[factor * value for value in layer.values()[key]] for layer in layers]
    return Curve(
        [layer.layer for layer in layers],
        [sum(each) / len(each) for each in values],
        [min(each) for each in values],
        [max(each) for each in values],
    )


def _matrix(pairs: Sequence[PairScores]) -> torch.Tensor:
    """(l, l) shares found first: row = language of the query."""
    languages = list(dict.fromkeys(name for pair in pairs for name in pair[:2]))
    shares = torch.zeros(len(languages), len(languages))
    for pair in pairs:
        source, target = (languages.index(name) for name in pair[:2])
        shares[source, target] = pair.retrieval.forward_accuracy
        shares[target, source] = pair.retrieval.backward_accuracy
    return shares


def _write_points(path: Path, models: Models, shown_layer: int) -> None:
    """The points of the large pictures; `drawn` counts the drawn lines."""
    _write_csv(
        path,
        ("model", "layer", "language", "drawn", "x", "y"),
        (
            (name, layer.layer, language, index, f"{x:.6f}", f"{y:.6f}")
            for name, layers in models.items()
            for layer in layers
            if layer.layer == shown_layer
            for language, places in layer.points.items()
            for index, (x, y) in enumerate(places.tolist())
        ),
    )


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
