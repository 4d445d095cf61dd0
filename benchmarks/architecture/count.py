"""Counts the shape of the package: folders, files a folder, levels of imports, arrows up, circles.

python -m benchmarks.architecture.count [--before COMMIT]

--before reads the package of another commit beside that of the working tree. Its arrows up are
counted against the layers that its own tests/test_import_graph.py declares, since the order of
benchmarks/architecture/order.py knows only today's rooms. Imports inside functions count as others.
"""

from __future__ import annotations

import argparse
import ast
import io
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from benchmarks.architecture.imports import (
    PACKAGE,
    ROOT,
    circles,
    import_graph,
    imports_of,
    levels,
    modules_of,
)
from benchmarks.architecture.order import points_up

VERSION = "crossalign.__version__"  # a string that the package itself once held


class Counts(NamedTuple):
    folders: int
    files: int
    largest_folder: str
    files_of_largest_folder: int
    flat_modules: int
    levels: int
    levels_inside_alignment: int
    arrows_up: int
    circles: int


def count(package: Path, is_up: Callable[[str, str], bool]) -> Counts:
    """is_up(importer, imported): whether that import runs against the order."""
    modules = modules_of(package)
    code = {name: path for name, path in modules.items() if path.name != "__init__.py"}
    folders: dict[Path, int] = {}
    for path in code.values():
        folders[path.parent] = folders.get(path.parent, 0) + 1
    largest = max(folders, key=lambda folder: folders[folder])
    arrows = import_graph(modules)
    up = {
        (name, each.name)
        for name, path in code.items()
        for each in imports_of(path, modules)
        if each.ours and each.dotted != VERSION and is_up(name, each.name)
    }
    return Counts(
        folders=len(folders),
        files=len(code),
        largest_folder=str(largest.relative_to(package.parent)),
        files_of_largest_folder=folders[largest],
        flat_modules=sum(path.parent == package for path in code.values()),
        levels=levels(arrows),
        levels_inside_alignment=levels(inside(arrows, "alignment")),
        arrows_up=len(up),
        circles=len(circles(arrows)),
    )


def inside(arrows: Mapping[str, set[str]], room: str) -> dict[str, set[str]]:
    """The part of a graph that is within one room."""
    names = {name for name in arrows if name.startswith(f"{room}.")}
    return {name: arrows[name] & names for name in names}


def count_here() -> Counts:
    return count(PACKAGE, points_up)


def count_commit(commit: str) -> Counts:
    """The counts of a commit whose import test lists its layers."""
    packed = subprocess.run(
        ["git", "archive", commit, "crossalign", "tests/test_import_graph.py"],
        cwd=ROOT, capture_output=True, check=True,
    ).stdout  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
            archive.extractall(folder, filter="data")
        layers = declared_layers(Path(folder, "tests", "test_import_graph.py").read_text())
        return count(Path(folder, "crossalign"), lambda *names: is_against(layers, *names))


def declared_layers(text: str) -> tuple[tuple[str, ...], ...]:
    """The constant LAYERS of an import test, top layer last."""
    for node in ast.parse(text).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "LAYERS":
            names: Mapping[str, object] = {"__builtins__": {}}
            found: tuple[tuple[str, ...], ...] = eval(ast.unparse(node.value), dict(names))
            return found
    raise ValueError("the import test of this commit declares no LAYERS")


def is_against(layers: tuple[tuple[str, ...], ...], importer: str, imported: str) -> bool:
    """A module may import from lower layers, and from its own layer within one folder."""

    def layer(module: str) -> int:
        for number, names in enumerate(layers):
            for name in names:
                if module == name or (name.endswith(".") and f"{module}.".startswith(name)):
                    return number
        return len(layers)

    if imported == "":
        return True
    low, high = layer(imported), layer(importer)
    is_same_folder = importer.rpartition(".")[0] == imported.rpartition(".")[0] != ""
    return not (low < high or (low == high and is_same_folder))


def table(columns: Mapping[str, Counts]) -> str:
    """A Markdown table: a row per count, a column per state of the package."""
    lines = [f"| | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for name in Counts._fields:
        values = " | ".join(str(getattr(counts, name)) for counts in columns.values())
        lines.append(f"| {name.replace('_', ' ')} | {values} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--before", metavar="COMMIT", help="another state to count beside this one")
    options = parser.parse_args()
    columns = {options.before: count_commit(options.before)} if options.before else {}
    print(table({**columns, "now": count_here()}))


if __name__ == "__main__":
    main()
