"""Imports point one way, those inside functions too, and `import crossalign` loads only PyTorch."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise

import pytest

from benchmarks.architecture.imports import (
    MODULES,
    PACKAGE,
    ROOT,
    Import,
    circles,
    find_circle,
    import_graph,
    imports_of,
    levels,
)
from benchmarks.architecture.order import ORDER, ORDER_INSIDE, place, points_up

# Lie flat in crossalign/; everything else is in a room.
FLAT = {
    *("", "__main__", "version", "build_report", "reference", "precision", "backends"),
    *("argument_checks", "optional_modules", "settings"),
}
TORCH_ONLY = ("precision", "argument_checks", "backends", "contrastive.problem", "reference")


def ours(name: str) -> list[Import]:
    return [imported for imported in imports_of(MODULES[name]) if imported.ours]


CODE = [name for name, path in MODULES.items() if path.name != "__init__.py"]


@pytest.mark.parametrize("name", CODE)
def test_imports_point_downwards(name: str) -> None:
    wrong = [imported for imported in ours(name) if points_up(name, imported.name)]
    assert not wrong, f"crossalign.{name} may not import {wrong}"


def test_every_module_has_a_place_inside_its_room() -> None:
    for room, order in ORDER_INSIDE.items():
        inside = [name for name in CODE if name.startswith(f"{room}.")]
        assert inside, f"no module is in crossalign.{room}"
        for name in inside:
            place(name, order, f"{room}.")


def test_no_modules_import_one_another_in_a_circle() -> None:
    """Imports inside functions count: two circles hid behind them."""
    assert not (circle := find_circle(import_graph())), f"in a circle: {' -> '.join(circle)}"


def test_circles_and_levels_are_found() -> None:
    arrows = {"a": {"b", "x"}, "b": {"c"}, "c": {"a"}, "x": {"y"}, "y": set()}
    assert find_circle(arrows) == ["a", "b", "c", "a"]
    assert circles(arrows) == [{"a", "b", "c"}] and levels(arrows) == 3
    arrows["c"] = set()
    assert find_circle(arrows) == [] and circles(arrows) == [] and levels(arrows) == 3
    assert levels({"a": {"b", "c"}, "b": {"c"}, "c": {"d"}, "d": set()}) == 4


def test_only_the_listed_modules_lie_flat() -> None:
    flat = {name for name, path in MODULES.items() if path.parent == PACKAGE}
    assert flat <= FLAT, "put it into a room"


@pytest.mark.parametrize("name", TORCH_ONLY)
def test_foundation_modules_import_only_torch(name: str) -> None:
    allowed = {"torch", "triton", *sys.stdlib_module_names}
    foreign = [
        imported
        for imported in imports_of(MODULES[name])
        if not imported.ours and imported.name not in allowed
    ]
    assert not foreign, f"crossalign.{name} imports {foreign}"


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
    for path in (ROOT / "benchmarks").rglob("*.py"):
        assert "tests" not in {imported.name for imported in imports_of(path)}, path


def test_no_test_imports_another_test_file() -> None:
    for path in (ROOT / "tests").rglob("*.py"):
        for imported in imports_of(path):
            last = imported.dotted.split(".")
            assert not (last[0] == "tests" and any(part.startswith("test_") for part in last)), path


def test_the_order_has_no_entry_twice() -> None:
    for order in (ORDER, *ORDER_INSIDE.values()):
        assert all(first != second for first, second in pairwise(sorted(order)))


def test_import_loads_only_torch() -> None:
    """In a fresh process: whatever is new after torch is of the standard library or ours."""
    code = (
        "import sys, torch; before = set(sys.modules); import crossalign; "
        "print(*[getattr(crossalign, name).__module__ for name in crossalign.__all__]); "
        "print(*{name.partition('.')[0] for name in set(sys.modules) - before})"
    )
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    loaded = set(done.stdout.splitlines()[1].split()) - set(sys.stdlib_module_names)
    assert loaded <= {"crossalign", "torch"}, f"import crossalign also loads {loaded}"
