"""The pictures of an analysis, as PNG: sentence vectors, values by layer, languages by languages.

Labels are language codes and English words: the fonts that matplotlib ships are enough.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator
from torch import Tensor

# Told apart without color vision, too (Okabe and Ito; the yellow left out, too pale for white).
COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#000000")
SHADES = (
    "#00395A",
    "#8A5F00",
    "#004F39",
    "#7F2F5E",
    "#6E3000",
    "#7B68C8",
    "#8C8C8C",
)  # a second round
MARKERS = ("o", "^", "s", "D", "v", "P", "X")  # help in black and white
INK = "#222222"
FRAME = "#d0d0d0"
BEFORE, AFTER = "#767676", "#0072B2"
_DPI = 160
_MOST_ANNOTATED = 14  # languages whose matrix has room for numbers
_APART = 0.06  # of the picture's width: language centers so far apart have room for their names


class Curve(NamedTuple):
    """One value per layer, with the least and the greatest of what it is the mean of."""

    layers: Sequence[int]
    means: Sequence[float]
    lows: Sequence[float]
    highs: Sequence[float]


def look(index: int) -> tuple[str, str]:
    """Color and marker of a language: 14 colors, and no two alike among the first 49."""
    turn, place = divmod(index, len(COLORS))
    color = (SHADES if turn % 2 else COLORS)[place]
    return color, MARKERS[(place + turn) % len(MARKERS)]


def draw_languages(
    points: Mapping[str, Tensor], *, num_linked: int, names: Mapping[str, str] | None = None
) -> bytes:
    """One point per sentence, colored by language; names at their centers where these are apart.

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
    _name_centers(axes, points)
    _add_legend(figure, axes, columns)
    return _png(figure)


def draw_languages_by_layer(points: Mapping[int, Mapping[str, Tensor]]) -> bytes:
    """The picture of draw_languages for every layer, small, without links and names."""
    columns = min(len(points), 5)
    rows = math.ceil(len(points) / columns)
    in_legend = min(max(1, 3 * columns), len(next(iter(points.values()))))
    legend_rows = math.ceil(len(next(iter(points.values()))) / in_legend)
    height = 1.75 * rows + 0.25 * legend_rows
    figure = Figure(figsize=(1.6 * columns, height), dpi=_DPI, layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, (layer, places) in zip(grid, points.items(), strict=False):
        _scatter(axes, places, num_linked=0, size=3, names=None)
        axes.set_title(f"layer {layer}", fontsize=8, color=INK)
    for axes in grid[len(points) :]:
        axes.set_axis_off()
    _add_legend(figure, grid[0], in_legend, markerscale=3.5)
    return _png(figure)


def draw_curves(
    curves: Mapping[str, Curve],
    *,
    label: str,
    shown_layer: int,
    is_percent: bool = False,
    chance: float | None = None,
) -> bytes:
    """Values by layer: the last curve in color, an earlier one ("before") gray and dashed.

    Layers at which a curve has no value are named in the picture.

    Args:
        curves: name -> curve; one or two. The band reaches from the least to the greatest.
        label: of the vertical axis.
        shown_layer: marked by a vertical bar, which the legend names.
        is_percent: the axis reaches from 0 to 100.
        chance: a dotted line at this height; None: no line.
    """
    figure = Figure(figsize=(5.2, 3.6), dpi=_DPI, layout="constrained")
    axes = figure.subplots()
    axes.axvline(shown_layer, color=FRAME, linewidth=6, zorder=0, label=f"layer {shown_layer}")
    styles = [(AFTER, "-", "o")] if len(curves) == 1 else [(BEFORE, "--", "s"), (AFTER, "-", "o")]
    for (name, curve), (color, line, marker) in zip(curves.items(), styles, strict=True):
        axes.fill_between(
            curve.layers, curve.lows, curve.highs, color=color, alpha=0.14, linewidth=0
        )
        axes.plot(
            curve.layers, curve.means, line, color=color, marker=marker, markersize=4, label=name
        )
    if chance is not None:
        axes.axhline(chance, color=INK, linewidth=1, linestyle=":", label="by chance")
    if is_percent:
        axes.set_ylim(-3, 103)
    _name_undefined(axes, curves)
    layers = [layer for curve in curves.values() for layer in curve.layers]
    axes.set_xlim(min(layers) - 0.5, max(layers) + 0.5)
    axes.set_xlabel("layer")
    axes.set_ylabel(label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=9))
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=4, frameon=False, fontsize=9)
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
            color = "white" if value < 55 else INK
            size = 8 if len(languages) <= 10 else 6.5
            _write(axes, (column, row), f"{value:.0f}", color=color, fontsize=size)
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
        color, marker = look(index)
        x, y = places.T.tolist()
        label = names[language] if names else language
        axes.scatter(x, y, s=size, c=color, marker=marker, alpha=0.55, linewidths=0, label=label)
        for middle, place in zip(middles, places.tolist(), strict=False):
            line_x, line_y = zip(middle, place, strict=True)
            axes.plot(line_x, line_y, color=INK, linewidth=0.9, zorder=2)
        x, y = places[:num_linked].T.tolist()
        axes.scatter(x, y, s=30, c=color, marker=marker, linewidths=0.9, edgecolors=INK, zorder=3)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.margins(0.06)
    for spine in axes.spines.values():
        spine.set_color(FRAME)


def _name_centers(axes: Axes, points: Mapping[str, Tensor]) -> None:
    """Writes each language's code at the center of its points, unless centers lie together."""
    centers = torch.stack([places.mean(dim=0) for places in points.values()])
    every = torch.cat(list(points.values()))
    extent = (every.amax(dim=0) - every.amin(dim=0)).clamp_min(torch.finfo(every.dtype).tiny)
    distances = torch.pdist(centers / extent)
    if not len(distances) or distances.min() < _APART:
        return
    halo = [withStroke(linewidth=3, foreground="white")]
    for language, center in zip(points, centers.tolist(), strict=True):
        name = _write(axes, center, language, fontsize=11, fontweight="bold")
        name.set(path_effects=halo, zorder=4)


def _name_undefined(axes: Axes, curves: Mapping[str, Curve]) -> None:
    notes = []
    for name, curve in curves.items():
        places = zip(curve.layers, curve.means, strict=True)
        undefined = [str(layer) for layer, mean in places if mean != mean]
        if undefined:
            of = f"{name}: " if len(curves) > 1 else ""
            every = len(undefined) == len(curve.layers)
            where = "at every layer" if every else f"at layer {', '.join(undefined)}"
            notes.append(f"{of}undefined {where}")
    if all(mean != mean for curve in curves.values() for mean in curve.means):
        axes.set_yticks([])  # there is no scale
    _write(axes, (0.5, 0.5), "\n".join(notes), fontsize=9).set(transform=axes.transAxes, wrap=True)


def _add_legend(figure: Figure, axes: Axes, columns: int, markerscale: float = 1.8) -> None:
    """Below everything; its markers are opaque, unlike the points."""
    legend = figure.legend(
        *axes.get_legend_handles_labels(),
        loc="outside lower center",
        ncols=columns,
        frameon=False,
        markerscale=markerscale,
        handletextpad=0.1,
        columnspacing=1.2,
    )
    for handle in filter(None, legend.legend_handles):
        handle.set_alpha(1)


def _write(axes: Axes, place: Sequence[float], text: str, color: str = INK, **font: Any) -> Text:
    return axes.text(place[0], place[1], text, ha="center", va="center", color=color, **font)


def _png(figure: Figure) -> bytes:
    png = io.BytesIO()
    figure.savefig(png, format="png", metadata={"Software": None})
    return png.getvalue()
