"""The measures as a reader sees them: name, format, direction."""

from __future__ import annotations

from typing import NamedTuple


class Measure(NamedTuple):
    """key: as in LayerMeasurement.summary and geometry.csv. is_share: shown in percent."""

    key: str
    title: str
    is_share: bool
    reading: str

    def format(self, value: float) -> str:
        return f"{format_number(100 * value, 1)} %" if self.is_share else format_number(value)


def format_number(value: float, digits: int = 3) -> str:
    """With a true minus sign; NaN is undefined."""
    if value != value:
        return "undefined"
    return f"{value:.{digits}f}".replace("-", "\N{MINUS SIGN}")


MEASURES = (
    Measure("accuracy", "translation found first", True, "higher: languages closer"),
    Measure("centered_accuracy", "found first, centered", True, "higher: languages closer"),
    Measure("reciprocal_rank", "mean reciprocal rank", False, "higher: languages closer"),
    Measure("margin_accuracy", "found first by margin", True, "higher: languages closer"),
    Measure("mean_margin", "mean margin of translations", False, "above 1: nearer than the rest"),
    Measure("alignment", "alignment", False, "lower: translations nearer"),
    Measure("center_distance", "distance of language centers", False, "lower: languages closer"),
    Measure(
        "language_identification", "language recognized", True, "lower: languages harder to tell"
    ),
    Measure("uniformity", "uniformity of a language", False, "lower: more evenly spread"),
    Measure("uniformity_of_all", "uniformity of all", False, "lower: more evenly spread"),
    Measure("mean_cosine", "mean cosine", False, "lower: more isotropic"),
    Measure("iso_score", "IsoScore", False, "higher: more isotropic"),
)
