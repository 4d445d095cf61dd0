"""The imports that a file makes, found in its text, and circles among them."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Set
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "crossalign"


class Import(NamedTuple):
    """One imported module of ours ("kernels.launch") or of another package ("torch")."""

    name: str
    ours: bool
    deferred: bool  # inside a function
    line: int
    dotted: str  # as written, with the name that is imported from it


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports_of(path: Path) -> Iterator[Import]:
    """Every import that runs; those for type checkers only do not."""

    def visit(node: ast.AST, deferred: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
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
            inner = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from visit(child, deferred or inner)

    def describe(dotted: str, deferred: bool, line: int) -> Import:
        top, _, rest = dotted.partition(".")
        if top != "crossalign":
            return Import(top, False, deferred, line, dotted)
        while rest and rest not in MODULES:
            rest = rest.rpartition(".")[0]
        return Import(rest, True, deferred, line, dotted)

    yield from visit(ast.parse(path.read_text()), deferred=False)


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
