"""Draws the cost model of the loss across ranks, and prints its table for docs/scaling.md.

python -m benchmarks.scaling.plot --output docs/scaling.png

Nothing here is measured: benchmarks/scaling/cost_model.py counts, and divides by
the rates of Machine.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.scaling.cost_model import SCHEDULES, Machine, rank_cost

NUM_PAIRS, NUM_FEATURES = 2**20, 1024
TABLE_RANKS = (1, 8, 64, 512, 4096)
FIGURE_RANKS = tuple(2**power for power in range(13))
LABELS = {
    "all_gather": 'crossalign, gather="all_gather"',
    "ring": 'crossalign, gather="ring"',
    "open_clip": "open_clip, local loss with gathered gradients",
    "inf_cl": "Inf-CL, ring",
}
# Title of a panel, field of RankCost, its unit.
PANELS = (
    ("matrix products, Tflop", "operations", 1e12),
    ("sent, GB", "wire_bytes", 1e9),
    ("held at the peak, GB", "memory_bytes", 1e9),
    ("predicted time, ms", "seconds", 1e-3),
)


def table() -> list[str]:
    """Markdown rows: every schedule at every number of ranks."""
    titles = ["ranks", "", *(title for title, _, _ in PANELS)]
    lines = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    for ranks in TABLE_RANKS:
        for schedule in SCHEDULES:
            cost = rank_cost(schedule, ranks, NUM_PAIRS, NUM_FEATURES)
            cells = [f"{ranks:,}", LABELS[schedule]]
            cells += [_three_digits(getattr(cost, field) / unit) for _, field, unit in PANELS]
            lines.append("| " + " | ".join(cells) + " |")
    return lines


def _three_digits(value: float) -> str:
    return f"{float(f'{value:.3g}'):,.10g}"


def draw(path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    machine = Machine()
    figure, panels = plt.subplots(1, len(PANELS), figsize=(17, 4.6), layout="constrained")
    for panel, (title, field, unit) in zip(panels, PANELS, strict=True):
        for schedule in SCHEDULES:
            costs = [rank_cost(schedule, w, NUM_PAIRS, NUM_FEATURES) for w in FIGURE_RANKS]
            values = [getattr(cost, field) / unit for cost in costs]
            # One rank sends nothing, which a logarithmic axis cannot show.
            shown = [(w, value) for w, value in zip(FIGURE_RANKS, values, strict=True) if value]
            style = "--" if schedule == "ring" else "-"  # it covers all_gather in the first panel
            panel.plot(*zip(*shown, strict=True), style, marker=".", label=LABELS[schedule])
        panel.set(yscale="log", xlabel="ranks W", title=f"per rank: {title}")
        panel.set_xscale("log", base=2)
        panel.grid(alpha=0.3)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    figure.suptitle(
        f"MODELED, NOT MEASURED: {NUM_PAIRS:,} pairs in all, D = {NUM_FEATURES}, bfloat16, "
        f"symmetric loss, forward and backward; {machine.matrix_tflops:g} Tflop/s, "
        f"{machine.link_gbps:g} GB/s and {machine.latency_us:g} µs assumed"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("docs/scaling.png"), help="the PNG")
    path = parser.parse_args().output
    draw(path)
    print("\n".join(table()))
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
