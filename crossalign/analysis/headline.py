"""The headline numbers of an analysis, as text for a terminal."""

from __future__ import annotations

from crossalign.analysis.measures import MEASURES
from crossalign.analysis.run import AnalysisResult

SHOWN = ("accuracy", "centered_accuracy", "language_identification", "mean_cosine")


def headline(result: AnalysisResult) -> str:
    """A line for each measure of the shown layer, with the baseline's value in front where there is
    one."""
    layer, last = result.shown_layer, list(result.models)[-1]
    titles = {each.key: each for each in MEASURES if each.key in SHOWN}
    lines = [f"layer {layer}, mean of all language pairs" + " (before > after)" * (last == "after")]
    for key in SHOWN:
        values = [
            titles[key].format(measured.summary()[key])
            for layers in result.models.values()
            for measured in layers
            if measured.layer == layer
        ]
        lines.append(f"  {titles[key].title}: {' > '.join(values)}")
    return "\n".join(lines)
