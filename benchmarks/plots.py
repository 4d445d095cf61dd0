"""Plots the contrastive loss against N and D: time, memory, share of the ceiling, and time ratios.

python -m benchmarks.plots benchmarks/results/contrastive_*.jsonl --output plots/
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path

from benchmarks.contrastive_cases import OURS
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


def ratios(result: ResultFile) -> dict[tuple[bool, int, str], list[tuple[int, float]]]:
    """(symmetric, d, other implementation) -> [(n, time of crossalign / time of the other)]."""
    times: dict[tuple[bool, int, int], dict[str, float]] = defaultdict(dict)
    for row in result.rows:
        if row["status"] == "ok" and row["pass"] == "both" and row["option"] == "plain":
            times[row["symmetric"], row["d"], row["n"]][row["implementation"]] = row["median_ms"]
    lines: dict[tuple[bool, int, str], list[tuple[int, float]]] = defaultdict(list)
    for (symmetric, d, n), by_name in sorted(times.items()):
        for name, time in by_name.items():
            if name != OURS and OURS in by_name:
                lines[symmetric, d, name].append((n, by_name[OURS] / time))
    return lines


def plot_ratios(result: ResultFile, folder: Path) -> Path | None:
    """A panel per direction, a line per width and rival; below 1 crossalign is faster."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    lines = ratios(result)
    if not lines:
        return None
    names = sorted({name for _, _, name in lines})
    widths = sorted({d for _, d, _ in lines})
    directions = sorted({symmetric for symmetric, _, _ in lines})
    figure, panels = plt.subplots(
        1, len(directions), figsize=(6 * len(directions), 4.5), layout="constrained", squeeze=False
    )
    for symmetric, panel in zip(directions, panels[0], strict=True):
        for (is_symmetric, d, name), points in sorted(lines.items()):
            if is_symmetric == symmetric:
                style = ("-", "--", ":")[names.index(name) % 3]
                color = f"C{widths.index(d)}"
                label = f"D = {d}, against {name}"
                panel.plot(*zip(*points, strict=True), style, color=color, marker="o", label=label)
        panel.axhline(1, color="gray", linewidth=0.8)
        panel.set_xscale("log", base=2)
        panel.set_xlabel("pairs N")
        panel.set_ylabel(f"time of {OURS} / time of the other")
        panel.set_title("symmetric" if symmetric else "one direction")
        panel.grid(alpha=0.3)
    panels[0][0].legend(fontsize="small")
    figure.suptitle(f"{result.run['device']}: forward and backward")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{result.path.stem}_ratio.png"
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
        path = plot_ratios(result, arguments.output)
        print(f"wrote {path}" if path else f"{result.path.name}: nothing to compare")


if __name__ == "__main__":
    main()
