"""Draws the table and the figure of docs/reproduction.md from a result file of reproduce_afp.

python -m benchmarks.reproduction.plot benchmarks/results/reproduce_afp_*.jsonl [--output docs]
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.provenance import ROOT
from benchmarks.report import with_tables
from benchmarks.reproduction.data import CAPTION_LANGUAGES
from benchmarks.reproduction.measures import CHOICES
from benchmarks.reproduction.reproduce_afp import BEFORE, Sizes, configurations

BEGIN, END = "<!-- reproduction: begin -->", "<!-- reproduction: end -->"
PAGE, FIGURE = "reproduction.md", "reproduction.png"

# What measures were called when a result file, which is never edited, was written.
OLDER_NAMES = {"center_distance": "centre_distance"}

AFP_COLOR, OTHER_COLOR = "#0072B2", "#B8B8B8"

Row = dict[str, Any]
Measure = Callable[[Row], float | None]


class Panel(NamedTuple):
    """A measure of the figure: value times scale, as bars that start at `left`, and a line."""

    measure: str
    title: str
    unit: str
    scale: float
    left: float
    line: float
    line_name: str


def shown_panels(sizes: Row) -> tuple[Panel, ...]:
    by_chance, of_choices = 100 / sizes["tests"], 100 / CHOICES
    choice_line = (100, 0, of_choices, f"{of_choices:.0f} %, by chance")
    return (
        Panel(
            "retrieval, captions",
            "Captions that find\ntheir translation first",
            f"% of {sizes['tests']}, at the aligned layer",
            *(100, 0, by_chance, f"{by_chance:.1f} %, by chance"),
        ),
        Panel(
            "gain, 0 shots",
            "Translation chosen by gain,\nno demonstration",
            "% of the questions",
            *choice_line,
        ),
        Panel(
            "gain, 5 shots",
            "Translation chosen by gain,\nfive demonstrations",
            "% of the questions",
            *choice_line,
        ),
        Panel(
            "worst perplexity",
            "Perplexity of the language\nthat lost most",
            "times that before alignment",
            *(1, 1, 1.05, "5 % worse"),
        ),
    )


def read_rows(path: Path) -> tuple[Row, dict[str, list[Row]]]:
    """(the sizes, name -> its rows, by seed): in the order of the configurations, not of the file,
    to which several calls may have added."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    sizes = next(row["sizes"] for row in rows if row["record"] == "run")
    names = [BEFORE, *(each.name for each in configurations(Sizes(**sizes)))]
    results = sorted(
        (row for row in rows if row["record"] == "result"), key=lambda row: row["seed"]
    )
    found = {name: [row for row in results if row["name"] == name] for name in names}
    return sizes, {name: rows for name, rows in found.items() if rows}


def layer_of(row: Row, default: int) -> str:
    return str(row["configuration"]["layer"] if "configuration" in row else default)


def retrieval(row: Row, layer: int, *, captions: bool) -> float:
    """Mean over pairs of languages and both directions."""
    found = row["layers"][layer_of(row, layer)]["retrieval"]
    return statistics.fmean(
        accuracy
        for name, both in found.items()
        if captions == all(code in CAPTION_LANGUAGES for code in name.split("-"))
        for accuracy in both
    )


def geometry(row: Row, layer: int, name: str) -> float:
    found: dict[str, float] = row["layers"][layer_of(row, layer)]["geometry"]
    return found[name] if name in found else found[OLDER_NAMES[name]]


def choice(row: Row, shots: int, kind: str) -> float | None:
    """Mean over the directions; None where it was not measured."""
    found = row["choice"].get(str(shots))
    return statistics.fmean(found[kind].values()) if found else None


def worst_perplexity(row: Row, before: Row) -> float:
    """The largest ratio of any language to the model before."""
    return max(value / before["perplexity"][code] for code, value in row["perplexity"].items())


def columns(layer: int, before: dict[int, Row]) -> dict[str, tuple[Measure, str]]:
    """Title -> (measure of a row, how it is written)."""
    return {
        "retrieval, captions": (lambda row: retrieval(row, layer, captions=True), ".1%"),
        "retrieval, Tatoeba": (lambda row: retrieval(row, layer, captions=False), ".1%"),
        "likelihood, 0 shots": (lambda row: choice(row, 0, "likelihood"), ".1%"),
        "likelihood, 5 shots": (lambda row: choice(row, 5, "likelihood"), ".1%"),
        "gain, 0 shots": (lambda row: choice(row, 0, "gain"), ".1%"),
        "gain, 5 shots": (lambda row: choice(row, 5, "gain"), ".1%"),
        "worst perplexity": (lambda row: worst_perplexity(row, before[row["seed"]]), ".2f"),
        "alignment": (lambda row: geometry(row, layer, "alignment"), ".2f"),
        "uniformity": (lambda row: geometry(row, layer, "uniformity"), ".2f"),
        "language distance": (lambda row: geometry(row, layer, "center_distance"), ".2f"),
        "language told": (lambda row: geometry(row, layer, "language_identification"), ".0%"),
    }


def cell(found: Sequence[float | None], form: str) -> str:
    """Mean, and lowest to highest where there are several."""
    values = [value for value in found if value is not None]
    if not values:
        return "-"
    text = format(statistics.fmean(values), form)
    spread = f" ({format(min(values), form)} to {format(max(values), form)})"
    return text + spread * (len(values) > 1)


def table(sizes: Row, named: dict[str, list[Row]]) -> str:
    """One line per configuration; the model before is shown at every layer that was aligned."""
    before = {row["seed"]: row for row in named[BEFORE]}
    shown = columns(sizes["layers"][0], before)
    lines = [f"| | {' | '.join(shown)} |", "|---" * (len(shown) + 1) + "|"]
    for name, rows in named.items():
        layers = sizes["layers"] if name == BEFORE else sizes["layers"][:1]
        for layer in layers:
            cells = [
                cell([measure(row) for row in rows], form)
                for measure, form in columns(layer, before).values()
            ]
            label = f"{name}, layer {layer}" if name == BEFORE else name
            lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(sizes: Row, named: dict[str, list[Row]], path: Path) -> None:
    """A bar per configuration and a dot per seed, for four measures, one row of bars for all."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    before = {row["seed"]: row for row in named[BEFORE]}
    measures = columns(sizes["layers"][0], before)
    figure, panels = plt.subplots(1, 4, figsize=(14, 4.6), sharey=True, layout="constrained")
    names = list(named)[::-1]
    for panel, shown in zip(panels, shown_panels(sizes), strict=True):
        for position, name in enumerate(names):
            found = [measures[shown.measure][0](row) for row in named[name]]
            values = [shown.scale * value for value in found if value is not None]
            if values:
                length = statistics.fmean(values) - shown.left
                color = AFP_COLOR if "AFP" in name else OTHER_COLOR
                panel.barh(position, length, left=shown.left, color=color)
                panel.plot(values, [position] * len(values), "k.", markersize=5)
            else:
                place = {"transform": panel.get_yaxis_transform(), "va": "center"}
                panel.text(0.02, position, "not measured", color="0.4", **place)
        panel.axvline(shown.line, color="k", linestyle=":", linewidth=1.2)
        panel.set_title(shown.title, fontsize=12)
        panel.set_xlabel(f"{shown.unit}\ndotted: {shown.line_name}", fontsize=11)
        panel.tick_params(labelsize=11)
        panel.grid(axis="x", alpha=0.3)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_yticks(range(len(names)), names)
    panels[0].set_ylim(-0.6, len(names) - 0.4)
    panels[3].set_xscale("log")
    panels[3].set_xticks([1, 10, 100, 1000], ["1 ×", "10 ×", "100 ×", "1,000 ×"])
    marks = [
        Patch(color=AFP_COLOR, label="AFP: both losses"),
        Patch(color=OTHER_COLOR, label="one loss, or none (before)"),
        Line2D([], [], color="k", marker=".", linestyle="", label="one seed"),
    ]
    figure.legend(handles=marks, loc="outside upper center", ncols=3, frameon=False, fontsize=11)
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, help="result file of reproduce_afp")
    parser.add_argument("--output", type=Path, default=ROOT / "docs", help="folder of page, figure")
    arguments = parser.parse_args(argv)
    sizes, named = read_rows(arguments.results)
    page, text = arguments.output / PAGE, table(sizes, named)
    if page.exists():
        page.write_text(with_tables(page.read_text(), text, BEGIN, END))
    print(text)
    draw(sizes, named, arguments.output / FIGURE)


if __name__ == "__main__":
    main()
