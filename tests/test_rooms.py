"""Every room offers its public names from its `__init__`, and they can be imported from there."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.architecture.imports import MODULES, PACKAGE
from tests.support.hosts import load_drop_in

ROOMS = sorted(name for name, path in MODULES.items() if path.name == "__init__.py" and name)
DOCUMENTS = sorted(
    path for folder in ("docs", "examples") for path in (PACKAGE.parent / folder).rglob("*.*")
)


@pytest.mark.parametrize("room", ROOMS)
def test_public_names_are_those_that_type_checkers_see(room: str) -> None:
    module = importlib.import_module(f"crossalign.{room}")
    tree = ast.parse(MODULES[room].read_text())
    shown = {
        alias.name: node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith(f"crossalign.{room}.")
        for alias in node.names
    }
    assert sorted(shown) == sorted(module.__all__)
    for name, home in shown.items():
        assert getattr(module, name) is getattr(importlib.import_module(home or ""), name)
        assert name in dir(module)
    with pytest.raises(AttributeError, match=f"crossalign.{room}' has no attribute 'no_such_name'"):
        _ = module.no_such_name


def test_names_of_a_room_hide_none_of_its_modules() -> None:
    for room in ROOMS:
        names = importlib.import_module(f"crossalign.{room}").__all__
        assert not [name for name in names if f"{room}.{name}" in MODULES], room


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_loads_nothing_until_a_name_is_asked_for(room: str) -> None:
    code = (
        f"import sys, crossalign.{room}; "
        "loaded = {name.partition('.')[0] for name in sys.modules} & {'torch', 'triton', 'numpy'}; "
        "assert not loaded, loaded"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_documents_import_public_names(path: Path) -> None:
    """What a page or an example imports from crossalign is in the `__all__` of a room."""
    if path.suffix not in (".md", ".py"):
        return
    for line in path.read_text().splitlines():
        words = line.split()
        if words[:1] != ["from"] or not words[1].startswith("crossalign") or len(words) < 4:
            continue
        module = words[1].removeprefix("crossalign.integrations.")
        room = load_drop_in(module) if module != words[1] else importlib.import_module(module)
        assert hasattr(room, "__all__"), f"{path}: {words[1]} is no room"
        names = {word.strip("(),") for word in words[3:]} - {"", "as"}
        assert names <= set(room.__all__) | {words[-1]}, f"{path}: {line}"
