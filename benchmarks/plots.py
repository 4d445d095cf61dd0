"""Plots time, memory and share of the ceiling of the contrastive loss against N and against D.

python -m benchmarks.plots benchmarks/results/contrastive_*.jsonl --output plots/
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path

from benchmarks.report import ResultFile, Row, read_results

MEASURES = {
    "median_ms": "forward and backward, ms",
    "peak_mib": "peak memory above the inputs, MiB",
    "share_of_ceiling": "share of the ceiling",
}
AXES = {"n": ("d", "pairs N"), "d": ("n", "width D")}


def series(result: ResultFile, axis: str) -> dict[str, list[Row]]:
    """Rows per implementation along one axis, at the value of the other that has most rows."""
    fixed = AXES[axis][0]
    rows = [
        row
        for row in result.rows
        if row["status"] == "ok" and row["pass"] == "both" and row["option"] == "plain"
    ]
    groups: dict[tuple[int, str, bool], dict[tuple[str, int], Row]] = defaultdict(dict)
    for row in rows:
        group = groups[row[fixed], row["dtype"], row["symmetric"]]
        group[row["implementation"], row[axis]] = row
    if not groups:
        return {}
    longest = max(groups.values(), key=lambda group: len({value for _, value in group}))
    lines: dict[str, list[Row]] = defaultdict(list)
    for (name, _), row in sorted(longest.items()):
        lines[name].append(row)
    return lines


def plot(result: ResultFile, axis: str, folder: Path) -> Path | None:
    """One PNG with a panel per measure, or None where nothing was measured along this axis."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    lines = series(result, axis)
    if not lines:
        return None
    fixed, label = AXES[axis]
    first = next(iter(lines.values()))[0]
    direction = "symmetric" if first["symmetric"] else "one direction"
    figure, panels = plt.subplots(1, len(MEASURES), figsize=(15, 4.5), layout="constrained")
    for panel, (measure, measure_label) in zip(panels, MEASURES.items(), strict=True):
        for name, rows in lines.items():
            known = [row for row in rows if row[measure] is not None]
            xs, ys = [row[axis] for row in known], [row[measure] for row in known]
            panel.plot(xs, ys, marker="o", label=name)
        panel.set_xscale("log", base=2)
        panel.set_xlabel(label)
        panel.set_ylabel(measure_label)
        panel.grid(alpha=0.3)
        if measure != "share_of_ceiling":
            panel.set_yscale("log")
    panels[0].legend()
    figure.suptitle(
        f"{result.run['device']}: {first['dtype']}, {fixed.upper()} = {first[fixed]:,}, {direction}"
    )
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{result.path.stem}_{axis}.png"
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, nargs="+", help="result files of bench_contrastive")
    parser.add_argument("--output", type=Path, default=Path("plots"), help="folder of the PNGs")
    arguments = parser.parse_args()
    for result in read_results(arguments.results):
        for axis in AXES:
            path = plot(result, axis, arguments.output)
            print(f"wrote {path}" if path else f"{result.path.name}: nothing along {axis}")


if __name__ == "__main__":
    main()
