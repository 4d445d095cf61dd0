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
    """A PNG. points: language -> (n, 2), rows translate rows; the first num_linked are joined."""
    figure = Figure(figsize=(5.2, 4.9), dpi=160, layout="constrained")
    axes = figure.subplots()
    for (language, places), (colour, marker) in zip(points.items(), STYLES, strict=False):
        x, y = places.T.tolist()
        axes.scatter(
            x, y, s=13, c=colour, marker=marker, alpha=0.6, linewidths=0, label=names[language]
        )
    corners = torch.stack(list(points.values()), dim=1)  # (n, languages, 2)
    for polygon in corners[:num_linked]:
        x, y = torch.cat((polygon, polygon[:1])).T.tolist()
        axes.plot(x, y, color=LINK_COLOUR, linewidth=0.9, marker="o", markersize=3.2)
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
