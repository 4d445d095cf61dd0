"""Draws accuracy by layer, and the plane of the aligned layer, before and after, from a result file
of align_real_model.

python -m benchmarks.real_model.plot RESULT.jsonl --output LAYERS.png --plane PLANE.png
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from crossalign.analysis.figures import look
from crossalign.files.text import read_lines

ARMS = {"nothing": "before", "paper": "the paper's setting", "best": "best setting found"}
PLANE_ARMS = {"nothing": "before", "best": "after"}
PLANES = {"none": "as they are", "side": "each language centered"}
NUM_LINKED = 5  # sentences whose translations are joined
PANELS = {
    ("all", "none"): "mean of all tokens, as the paper compares",
    ("content", "side"): "content tokens, each language centered",
}


def accuracies(rows: list[dict[str, Any]], arm: str, tokens: str, center: str) -> list[list[float]]:
    """Layer by layer, a mean over language pairs for each seed."""
    found: dict[str, dict[int, list[float]]] = {}
    for row in rows:
        if row["part"].startswith(f"test {arm} ") and row.get("tokens") == tokens:
            layers = found.setdefault(row["part"], {})
            layers.setdefault(row["layer"], []).append(100 * row[center])
    return [
        [sum(seed[layer]) / len(seed[layer]) for seed in found.values()]
        for layer in sorted(next(iter(found.values())))
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("result", type=Path)
    parser.add_argument("--output", type=Path, required=True, help="PNG of accuracies by layer")
    parser.add_argument("--plane", type=Path, help="PNG of the plane (None: not drawn)")
    arguments = parser.parse_args()
    rows = [json.loads(line) for line in read_lines(arguments.result)][1:]
    draw_layers(rows, arguments.output)
    if arguments.plane:
        draw_planes(rows, arguments.plane)


def draw_layers(rows: list[dict[str, Any]], output: Path) -> None:
    plt = _pyplot()
    figure, panels = plt.subplots(1, 2, figsize=(11, 4), sharey=True, layout="constrained")
    for panel, ((tokens, center), title) in zip(panels, PANELS.items(), strict=True):
        for arm, label in ARMS.items():
            by_layer = accuracies(rows, arm, tokens, center)
            means = [sum(seeds) / len(seeds) for seeds in by_layer]
            (line,) = panel.plot(means, marker="o", markersize=3, label=label)
            lows, highs = [min(seeds) for seeds in by_layer], [max(seeds) for seeds in by_layer]
            panel.fill_between(range(len(means)), lows, highs, alpha=0.2, color=line.get_color())
        panel.set_title(title)
        panel.set_xlabel("layer")
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("translation found first, %")
    panels[0].legend()
    figure.savefig(output, dpi=110)


def draw_planes(rows: list[dict[str, Any]], output: Path) -> None:
    """Each language a color; lines join the translations of some sentences at their middle."""
    plt = _pyplot()
    figure, panels = plt.subplots(2, 2, figsize=(10, 9), layout="constrained")
    for line, (center, how) in zip(panels, PLANES.items(), strict=True):
        for panel, (arm, label) in zip(line, PLANE_ARMS.items(), strict=True):
            found = [
                row for row in rows if row["part"] == f"test {arm} 0" and row.get("plane") == center
            ]
            for number, row in enumerate(found):
                color, marker = look(number)
                across, up = zip(*row["points"], strict=True)
                style = {"s": 16, "linewidths": 0, "alpha": 0.8}
                panel.scatter(
                    across, up, color=color, marker=marker, label=row["language"], **style
                )
            for sentence in range(min(NUM_LINKED, len(found[0]["points"]))):
                places = [row["points"][sentence] for row in found]
                middle = [sum(each) / len(places) for each in zip(*places, strict=True)]
                for place in places:
                    panel.plot(*zip(middle, place, strict=True), color="black", linewidth=0.5)
            layer, shares = found[0]["layer"], sum(found[0]["shares"])
            panel.set_title(
                f"{label}: layer {layer}, {how} ({shares:.0%} of the variance)", fontsize=10
            )
            panel.set_xticks([])
            panel.set_yticks([])
    panels[0][0].legend(ncols=2, fontsize=8)
    figure.savefig(output, dpi=110)


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


if __name__ == "__main__":
    main()
