"""Imports found in the text of files; the circles and the longest chain of their graph."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Set
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "crossalign"


class Import(NamedTuple):
    """One imported module of the package ("kernels.launch") or of another one ("torch")."""

    name: str
    ours: bool
    deferred: bool  # inside a function
    line: int
    dotted: str  # as written, with the name that is imported from it


def modules_of(package: Path) -> dict[str, Path]:
    """Dotted name -> file; "" is the package itself."""

    def name(path: Path) -> str:
        parts = path.relative_to(package).with_suffix("").parts
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    return {name(path): path for path in sorted(package.rglob("*.py"))}


MODULES = modules_of(PACKAGE)


STATEMENTS = (ast.stmt, ast.excepthandler, ast.match_case)


def imports_of(path: Path, modules: Mapping[str, Path] = MODULES) -> Iterator[Import]:
    """Every import that runs, in functions too; those for type checkers only do not."""

    def visit(node: ast.AST, deferred: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if not isinstance(child, STATEMENTS):
                continue  # no expression holds an import, and most of a file is expressions
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                yield from visit(ast.Module(body=child.orelse, type_ignores=[]), deferred)
                continue
            if isinstance(child, ast.Import):
                for alias in child.names:
                    yield describe(alias.name, deferred, child.lineno)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{path}:{child.lineno}: write absolute imports"
                for alias in child.names:
                    yield describe(f"{child.module}.{alias.name}", deferred, child.lineno)
            inner = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
            yield from visit(child, deferred or inner)

    def describe(dotted: str, deferred: bool, line: int) -> Import:
        top, _, rest = dotted.partition(".")
        if top != "crossalign":
            return Import(top, False, deferred, line, dotted)
        while rest and rest not in modules:
            rest = rest.rpartition(".")[0]
        return Import(rest, True, deferred, line, dotted)

    yield from visit(ast.parse(path.read_text()), deferred=False)


def import_graph(modules: Mapping[str, Path] = MODULES) -> dict[str, set[str]]:
    """Module -> modules of the package that it imports; without the __init__ files."""
    code = {name: path for name, path in modules.items() if path.name != "__init__.py"}
    return {
        name: {each.name for each in imports_of(path, modules) if each.ours} & code.keys() - {name}
        for name, path in code.items()
    }


def find_circle(arrows: Mapping[str, Set[str]]) -> list[str]:
    """One circle of the graph, its first node repeated at its end; [] if there is none."""
    finished: set[str] = set()

    def search(node: str, path: list[str]) -> list[str]:
        if node in path:
            return [*path[path.index(node) :], node]
        if node in finished:
            return []
        for target in sorted(arrows.get(node, ())):
            if circle := search(target, [*path, node]):
                return circle
        finished.add(node)
        return []

    for start in sorted(arrows):
        if circle := search(start, []):
            return circle
    return []


def reachable(arrows: Mapping[str, Set[str]], start: str) -> set[str]:
    """What a node imports, directly or through others."""
    seen: set[str] = set()
    waiting = [start]
    while waiting:
        for target in arrows.get(waiting.pop(), ()):
            if target not in seen:
                seen.add(target)
                waiting.append(target)
    return seen


def circles(arrows: Mapping[str, Set[str]]) -> list[set[str]]:
    """The groups of nodes that all import one another, directly or through others."""
    reach = {node: reachable(arrows, node) for node in arrows}
    groups = {
        frozenset({other for other in reach[node] if node in reach.get(other, ())})
        for node in arrows
        if node in reach[node]
    }
    return sorted(map(set, groups), key=sorted)


def levels(arrows: Mapping[str, Set[str]]) -> int:
    """Nodes of the longest chain of imports; the nodes of a circle count as one."""
    member = {node: min(group) for group in circles(arrows) for node in group}
    joined: dict[str, set[str]] = {}
    for node, targets in arrows.items():
        home = member.get(node, node)
        found = {member.get(target, target) for target in targets} - {home}
        joined.setdefault(home, set()).update(found)
    depth: dict[str, int] = {}

    def measure(node: str) -> int:
        if node not in depth:
            depth[node] = 1 + max(map(measure, joined.get(node, ())), default=0)
        return depth[node]

    return max(map(measure, joined), default=0)
