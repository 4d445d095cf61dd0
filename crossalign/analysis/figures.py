"""The pictures of an analysis, as PNG: sentence vectors, values by layer, languages by languages.

Labels are language codes and English words: the fonts that matplotlib ships are enough.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

# Told apart without colour vision, too (Okabe and Ito; the yellow left out, too pale for white).
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#000000")
MARKERS = ("o", "^", "s", "D", "v", "P", "X")  # help in black and white
INK = "#222222"
FRAME = "#d0d0d0"
BEFORE, AFTER = "#767676", "#0072B2"
_DPI = 160
_MOST_ANNOTATED = 12  # languages whose matrix has room for numbers


class Curve(NamedTuple):
    """One value per layer, with the least and the greatest of what it is the mean of."""

    layers: Sequence[int]
    means: Sequence[float]
    lows: Sequence[float]
    highs: Sequence[float]


def look(index: int) -> tuple[str, str]:
    """Colour and marker of a language; those of the first 7 x 7 differ."""
    turn = index // len(COLOURS)
    return COLOURS[index % len(COLOURS)], MARKERS[(index + turn) % len(MARKERS)]


def draw_languages(
    points: Mapping[str, Tensor], *, num_linked: int, names: Mapping[str, str] | None = None
) -> bytes:
    """One point per sentence, coloured by language.

    Args:
        points: language -> (n, 2), rows translate rows.
        num_linked: of so many sentences, lines join the translations at their middle.
        names: language -> name for the legend; None: the code itself.
    """
    labels = [names[language] if names else language for language in points]
    columns = min(len(points), 7, max(1, 52 // (max(map(len, labels)) + 5)))
    legend_rows = math.ceil(len(points) / columns)
    figure = Figure(figsize=(5.2, 4.7 + 0.2 * legend_rows), dpi=_DPI, layout="constrained")
    axes = figure.subplots()
    _scatter(axes, points, num_linked=num_linked, size=13, names=names)
    axes.legend(
        loc="upper center",
        bbox_to_anchor=(0.5, -0.01),
        ncols=columns,
        frameon=False,
        markerscale=1.8,
        handletextpad=0.1,
        columnspacing=1.2,
    )
    return _png(figure)


def draw_languages_by_layer(points: Mapping[int, Mapping[str, Tensor]]) -> bytes:
    """The picture of draw_languages for every layer, small, without links and legend."""
    columns = min(len(points), 5)
    rows = math.ceil(len(points) / columns)
    figure = Figure(figsize=(1.6 * columns, 1.75 * rows), dpi=_DPI, layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, (layer, places) in zip(grid, points.items(), strict=False):
        _scatter(axes, places, num_linked=0, size=3, names=None)
        axes.set_title(f"layer {layer}", fontsize=8, color=INK)
    for axes in grid[len(points) :]:
        axes.set_axis_off()
    return _png(figure)


def draw_curves(
    curves: Mapping[str, Curve],
    *,
    label: str,
    shown_layer: int,
    is_percent: bool = False,
    chance: float | None = None,
) -> bytes:
    """Values by layer: the last curve in colour, an earlier one ("before") grey and dashed.

    Args:
        curves: name -> curve; one or two. The band reaches from the least to the greatest.
        label: of the vertical axis.
        shown_layer: marked by a vertical line.
        is_percent: the axis reaches from 0 to 100.
        chance: a dotted line at this height; None: no line.
    """
    figure = Figure(figsize=(5.2, 3.3), dpi=_DPI, layout="constrained")
    axes = figure.subplots()
    axes.axvline(shown_layer, color=FRAME, linewidth=5, zorder=0)
    styles = [(AFTER, "-", "o")] if len(curves) == 1 else [(BEFORE, "--", "s"), (AFTER, "-", "o")]
    for (name, curve), (colour, line, marker) in zip(curves.items(), styles, strict=True):
        axes.fill_between(
            curve.layers, curve.lows, curve.highs, color=colour, alpha=0.14, linewidth=0
        )
        axes.plot(
            curve.layers, curve.means, line, color=colour, marker=marker, markersize=4, label=name
        )
    if chance is not None:
        axes.axhline(chance, color=INK, linewidth=1, linestyle=":", label="by chance")
    if is_percent:
        axes.set_ylim(-3, 103)
    axes.set_xlabel("layer")
    axes.set_ylabel(label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=9))
    axes.spines[["top", "right"]].set_visible(False)
    if len(curves) > 1 or chance is not None:
        axes.legend(frameon=False, fontsize=9)
    return _png(figure)


def draw_matrix(shares: Tensor, languages: Sequence[str]) -> bytes:
    """A heat map of shares, (l, l): row = language of the query, column = that searched."""
    figure = Figure(figsize=(5.2, 4.5), dpi=_DPI, layout="constrained")
    axes = figure.subplots()
    percent = 100 * shares.masked_fill(torch.eye(len(languages), dtype=torch.bool), torch.nan)
    image = axes.imshow(percent.numpy(), cmap="cividis", vmin=0, vmax=100)
    ticks = range(len(languages))
    label_size = max(4.0, min(10.0, 170 / len(languages)))
    is_crowded = sum(map(len, languages)) > 30
    axes.set_xticks(ticks, languages, rotation=90 if is_crowded else 0, fontsize=label_size)
    axes.set_yticks(ticks, languages, fontsize=label_size)
    axes.set_xlabel("searched language")
    axes.set_ylabel("language of the query")
    if len(languages) <= _MOST_ANNOTATED:
        for row, column in ((i, j) for i in ticks for j in ticks if i != j):
            value = percent[row, column].item()
            colour = "white" if value < 55 else INK
            axes.text(
                column, row, f"{value:.0f}", ha="center", va="center", color=colour, fontsize=8
            )
    figure.colorbar(image, ax=axes, label="found first, %", shrink=0.8)
    return _png(figure)


def _scatter(
    axes: Axes,
    points: Mapping[str, Tensor],
    *,
    num_linked: int,
    size: float,
    names: Mapping[str, str] | None,
) -> None:
    middles = torch.stack(list(points.values())).mean(dim=0)[:num_linked].tolist()
    for index, (language, places) in enumerate(points.items()):
        colour, marker = look(index)
        x, y = places.T.tolist()
        label = names[language] if names else language
        axes.scatter(x, y, s=size, c=colour, marker=marker, alpha=0.55, linewidths=0, label=label)
        for middle, place in zip(middles, places.tolist(), strict=False):
            line_x, line_y = zip(middle, place, strict=True)
            axes.plot(line_x, line_y, color=INK, linewidth=0.9, zorder=2)
        x, y = places[:num_linked].T.tolist()
        axes.scatter(x, y, s=30, c=colour, marker=marker, linewidths=0.9, edgecolors=INK, zorder=3)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.margins(0.06)
    for spine in axes.spines.values():
        spine.set_color(FRAME)


def _png(figure: Figure) -> bytes:
    png = io.BytesIO()
    figure.savefig(png, format="png", metadata={"Software": None})
    return png.getvalue()
