"""Draws accuracy by layer, before and after, from a result file of align_real_model.

python -m benchmarks.real_model.plot benchmarks/results/real_model_*.jsonl --output FILE.png
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from crossalign.files.text import read_lines

ARMS = {"nothing": "before", "paper": "the paper's setting", "best": "best setting found"}
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
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("result", type=Path)
    parser.add_argument("--output", type=Path, required=True, help="PNG")
    arguments = parser.parse_args()
    rows = [json.loads(line) for line in read_lines(arguments.result)][1:]
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
    figure.savefig(arguments.output, dpi=110)


if __name__ == "__main__":
    main()
