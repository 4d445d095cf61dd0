"""Imports flow one way, and `import crossalign` loads nothing that torch did not load before."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "crossalign"

# A module may import from layers above its own in this list, and from its own layer only inside a
# subpackage. A name that ends in a dot stands for the modules of that subpackage.
LAYERS = (
    (
        *("argument_checks", "contrastive_problem", "output_directory", "rank_agreement"),
        "text_files",
    ),
    (
        *("contrastive_arguments", "contrastive_terms", "reference", "scaling_model"),
        *("shared_memory", "torch_logits", "torch_pooling"),
    ),
    ("torch_backend",),
    ("kernels.launch",),
    ("kernels.",),
    ("contrastive_ops", "pooling_ops", "symmetric_gather"),
    ("contrastive_row_loss", "gather", "pooling"),
    ("distributed_blocks",),
    ("distributed_agreement", "distributed_gather_loss", "distributed_ring_loss"),
    ("distributed_loss",),
    ("contrastive_loss",),
    ("build_report", "encoders", "gradient_cache"),
    ("evaluation.",),
    ("alignment.",),
    ("analysis.",),
    ("evaluate_command",),
    ("demo.",),
    ("command_line",),
    ("__main__",),
)
TORCH_ONLY = ("argument_checks", "contrastive_problem", "reference", "torch_backend")
# Deferred, against the layers: whether Triton interprets is known only where the kernels are.
DEFERRED_EXCEPTIONS = {("argument_checks", "kernels.launch")}


class Import(NamedTuple):
    """One imported module of ours ("kernels.launch") or of another package ("torch")."""

    name: str
    ours: bool
    deferred: bool
    line: int


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports_of(path: Path) -> Iterator[Import]:
    """Every import that runs; those for type checkers alone do not."""

    def visit(node: ast.AST, deferred: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            if isinstance(child, ast.Import):
                for alias in child.names:
                    yield describe(alias.name, deferred, child.lineno)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{path}:{child.lineno}: write absolute imports"
                for alias in child.names:
                    if (child.module, alias.name) != ("crossalign", "__version__"):
                        yield describe(f"{child.module}.{alias.name}", deferred, child.lineno)
            inner = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from visit(child, deferred or inner)

    def describe(dotted: str, deferred: bool, line: int) -> Import:
        top, _, rest = dotted.partition(".")
        if top != "crossalign":
            return Import(top, False, deferred, line)
        while rest and rest not in MODULES:
            rest = rest.rpartition(".")[0]
        return Import(rest, True, deferred, line)

    yield from visit(ast.parse(path.read_text()), deferred=False)


def layer_of(name: str) -> int:
    for number, layer in enumerate(LAYERS):
        if any(
            name == entry or (entry[-1] == "." and f"{name}.".startswith(entry)) for entry in layer
        ):
            return number
    raise AssertionError(f"crossalign.{name} stands in no layer; add it to LAYERS in {__file__}")


def may_import(importer: str, imported: Import) -> bool:
    if imported.name == "":  # the package itself, which imports from every layer
        return False
    low, high = layer_of(imported.name), layer_of(importer)
    same_package = importer.rpartition(".")[0] == imported.name.rpartition(".")[0] != ""
    if low < high or (low == high and same_package):
        return True
    return imported.deferred and (importer, imported.name) in DEFERRED_EXCEPTIONS


CODE_MODULES = [name for name, path in MODULES.items() if path.name != "__init__.py"]


@pytest.mark.parametrize("name", CODE_MODULES)
def test_imports_point_downwards(name: str) -> None:
    ours = [imported for imported in imports_of(MODULES[name]) if imported.ours]
    wrong = [imported for imported in ours if not may_import(name, imported)]
    assert not wrong, f"crossalign.{name} may not import {wrong}"


@pytest.mark.parametrize("name", TORCH_ONLY)
def test_foundation_modules_import_only_torch(name: str) -> None:
    allowed = {"torch", *sys.stdlib_module_names}
    foreign = [
        imported
        for imported in imports_of(MODULES[name])
        if not imported.ours and imported.name not in allowed
    ]
    assert not foreign, f"crossalign.{name} imports {foreign}"


def test_modules_of_one_subpackage_do_not_import_in_circles() -> None:
    arrows = {
        name: {i.name for i in imports_of(path) if i.ours and not i.deferred and i.name != name}
        for name, path in MODULES.items()
    }
    while free := [name for name, targets in arrows.items() if not targets & arrows.keys()]:
        for name in free:
            del arrows[name]
    assert not arrows, f"these import one another: {sorted(arrows)}"


def test_kernels_are_imported_only_when_called() -> None:
    eager = [
        (name, imported)
        for name, path in MODULES.items()
        if not name.startswith("kernels")
        for imported in imports_of(path)
        if not imported.deferred and imported.name.partition(".")[0] in ("kernels", "triton")
    ]
    assert not eager, "a machine without Triton could not import these"


def test_benchmarks_do_not_import_tests() -> None:
    test_modules = {path.stem for path in (ROOT / "tests").rglob("*.py")} | {"tests"}
    for path in (ROOT / "benchmarks").glob("*.py"):
        assert not {i.name for i in imports_of(path)} & test_modules, path


def test_import_loads_only_torch() -> None:
    """In a fresh process: whatever is new after torch is of the standard library or ours."""
    code = (
        "import sys, torch; before = set(sys.modules); import crossalign; "
        "print(*{name.partition('.')[0] for name in set(sys.modules) - before})"
    )
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split()) - set(sys.stdlib_module_names)
    assert loaded <= {"crossalign", "torch"}, f"import crossalign also loads {loaded}"
