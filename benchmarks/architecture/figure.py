"""Draws docs/architecture.svg: the rooms of the package and who imports whom, from the imports.

python -m benchmarks.architecture.figure

An arrow that follows from two others is left out. tests/test_architecture.py fails while the
committed figure is not what this draws.
"""

from __future__ import annotations

from benchmarks.architecture.imports import ROOT, import_graph, reachable

FIGURE = ROOT / "docs" / "architecture.svg"
FOUNDATIONS = "foundations"
# Modules that every room may use: what lies flat below the rooms, and the records of the loss.
BELOW = (
    *("version", "optional_modules", "precision", "settings", "argument_checks", "backends"),
    *("contrastive.problem", "contrastive.sigmoid.problem"),
)
# Room -> what it is for, and its column in the figure: by hand, so that arrows pass beside boxes.
ROOMS = {
    "cli": ("commands", 2.1),
    "demo": ("shows it", 2.1),
    "check": ("right here, and fast?", 0.0),
    "integrations": ("for other libraries", -0.1),
    "alignment": ("trains", 1.0),
    "analysis": ("layers, reported", 3.3),
    "evaluation": ("tasks and measures", 2.8),
    "data": ("pairs and items", 3.8),
    "models": ("name to hidden states", 1.9),
    "build_report": ("what runs here", 0.0),
    "contrastive": ("the losses", 1.0),
    "pooling": ("tokens to sentences", 1.9),
    "distributed": ("gathers over ranks", 0.5),
    "kernels": ("Triton", 1.5),
    FOUNDATIONS: ("precision, checks", 1.0),
    "files": ("reads and writes", 3.8),
}
WIDTH, HEIGHT, COLUMN, ROW, MARGIN = 172, 50, 208, 96, 28
STYLE = """
  rect { fill: #fff; stroke: #44546a; stroke-width: 1.2 }
  path { fill: none; stroke: #7a8699; stroke-width: 1.2; marker-end: url(#head) }
  marker path { fill: #7a8699; stroke: none; marker-end: none }
  text { fill: #1c2733; font: 13px system-ui, sans-serif; text-anchor: middle }
  .name { font-weight: 600; font-size: 15px }
  @media (prefers-color-scheme: dark) {
    rect { fill: #1c2430; stroke: #8fa3bd }
    path { stroke: #8fa3bd }
    marker path { fill: #8fa3bd; stroke: none }
    text { fill: #e6ebf2 }
  }
""".strip("\n")


def room_of(module: str) -> str:
    top = module.partition(".")[0]
    if module in BELOW or top in ("reference", "operators"):
        return FOUNDATIONS
    return "cli" if top == "__main__" else top


def room_graph() -> dict[str, set[str]]:
    """Room -> rooms that it imports, without what follows from other arrows."""
    arrows: dict[str, set[str]] = {}
    for importer, targets in import_graph().items():
        own = arrows.setdefault(room_of(importer), set())
        own.update({room_of(target) for target in targets} - {room_of(importer)})
    return {
        room: {
            target
            for target in targets
            if not any(target in reachable(arrows, other) for other in targets - {target})
        }
        for room, targets in arrows.items()
    }


def rows_of(arrows: dict[str, set[str]]) -> dict[str, int]:
    """Room -> row from the bottom: one above the highest room that it imports."""
    rows: dict[str, int] = {}

    def row(room: str) -> int:
        if room not in rows:
            rows[room] = 1 + max(map(row, arrows[room]), default=-1)
        return rows[room]

    for room in arrows:
        row(room)
    return rows


def draw() -> str:
    arrows = room_graph()
    rows = rows_of(arrows)
    columns = [ROOMS[room][1] for room in arrows]
    top = max(rows.values())
    width = round((max(columns) - min(columns)) * COLUMN + WIDTH + 2 * MARGIN)
    height = top * ROW + HEIGHT + 2 * MARGIN

    def center(room: str) -> tuple[float, float]:
        x = MARGIN + WIDTH / 2 + (ROOMS[room][1] - min(columns)) * COLUMN
        return x, MARGIN + (top - rows[room]) * ROW + HEIGHT / 2

    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        f'width="{width}" height="{height}">',
        "<title>The rooms of crossalign; an arrow points to what a room imports</title>",
        f"<style>\n{STYLE}\n</style>",
        '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" '
        'markerHeight="8" orient="auto"><path d="M0 0L8 4L0 8z"/></marker></defs>',
    ]
    for room in sorted(arrows):
        for target in sorted(arrows[room]):
            (x, y), (to_x, to_y) = center(room), center(target)
            y, to_y = y + HEIGHT / 2, to_y - HEIGHT / 2
            bend = (to_y - y) / 2
            lines.append(
                f'<path d="M{x:g} {y:g}C{x:g} {y + bend:g} {to_x:g} {to_y - bend:g} '
                f'{to_x:g} {to_y:g}"/>'
            )
    for room in sorted(arrows):
        x, y = center(room)
        lines += [
            f'<rect x="{x - WIDTH / 2:g}" y="{y - HEIGHT / 2:g}" width="{WIDTH}" '
            f'height="{HEIGHT}" rx="7"/>',
            f'<text class="name" x="{x:g}" y="{y - 4:g}">{room}</text>',
            f'<text x="{x:g}" y="{y + 15:g}">{ROOMS[room][0]}</text>',
        ]
    return "\n".join([*lines, "</svg>", ""])


if __name__ == "__main__":
    FIGURE.write_text(draw(), encoding="utf-8")
    print(f"wrote {FIGURE}")
