"""The headline numbers on the terminal."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from crossalign.analysis.headline import SHOWN, headline
from crossalign.analysis.run import AnalysisResult


def layers(start: float) -> list[Any]:
    """Layers 1 and 2, of values that differ."""
    return [
        SimpleNamespace(
            layer=layer,
            summary=lambda layer=layer: {
                key: (start + layer + number) / 16 for number, key in enumerate(SHOWN)
            },
        )
        for layer in (1, 2)
    ]


def test_values_of_the_shown_layer_before_and_after() -> None:
    result = AnalysisResult({}, {"before": layers(0), "after": layers(4)}, 2)
    assert headline(result).splitlines() == [
        "layer 2, mean of all language pairs (before > after)",
        "  translation found first: 12.5 % > 37.5 %",
        "  found first, centered: 18.8 % > 43.8 %",
        "  language recognized: 25.0 % > 50.0 %",
        "  mean cosine: 0.312 > 0.562",
    ]


def test_one_model_has_one_value() -> None:
    lines = headline(AnalysisResult({}, {"model": layers(0)}, 1)).splitlines()
    assert lines[:2] == [
        "layer 1, mean of all language pairs",
        "  translation found first: 6.2 %",
    ]
