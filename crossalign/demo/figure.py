"""The picture of sentence vectors: one point per sentence, coloured by language."""

from __future__ import annotations

import io
from collections.abc import Mapping

import torch
from matplotlib.figure import Figure
from torch import Tensor

from crossalign.evaluation.projection import Projection

# Told apart without colour vision, too (Okabe and Ito); the markers help in black and white.
STYLES = (("#0072B2", "o"), ("#E69F00", "^"), ("#009E73", "s"), ("#CC79A7", "D"))
LINK_COLOUR = "#222222"


def draw_languages(
    points: Mapping[str, Tensor], names: Mapping[str, str], *, num_linked: int
) -> bytes:
    """A PNG. points: language -> (n, 2), rows translate rows; lines join the translations of the
    first num_linked at their middle."""
    figure = Figure(figsize=(5.2, 4.9), dpi=160, layout="constrained")
    axes = figure.subplots()
    middles = torch.stack(list(points.values())).mean(dim=0)[:num_linked].tolist()
    for (language, places), (colour, marker) in zip(points.items(), STYLES, strict=False):
        x, y = places.T.tolist()
        axes.scatter(
            x, y, s=13, c=colour, marker=marker, alpha=0.55, linewidths=0, label=names[language]
        )
        for middle, place in zip(middles, places.tolist(), strict=False):
            line_x, line_y = zip(middle, place, strict=True)
            axes.plot(line_x, line_y, color=LINK_COLOUR, linewidth=0.9, zorder=2)
        x, y = places[:num_linked].T.tolist()
        axes.scatter(
            x, y, s=30, c=colour, marker=marker, linewidths=0.9, edgecolors=LINK_COLOUR, zorder=3
        )
    axes.set_xticks([])
    axes.set_yticks([])
    axes.margins(0.06)
    for spine in axes.spines.values():
        spine.set_color("#d0d0d0")
    axes.legend(
        loc="upper center",
        bbox_to_anchor=(0.5, -0.01),
        ncols=len(points),
        frameon=False,
        markerscale=1.8,
        handletextpad=0.1,
        columnspacing=1.2,
    )
    png = io.BytesIO()
    figure.savefig(png, format="png", metadata={"Software": None})
    return png.getvalue()


def split_points(projection: Projection, vectors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The points of a projection of all languages' vectors, per language again."""
    sizes = [len(part) for part in vectors.values()]
    return dict(zip(vectors, torch.split(projection.points, sizes), strict=True))
