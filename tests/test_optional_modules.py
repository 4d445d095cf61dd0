"""A module that is not installed is named with the extra that brings it."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from crossalign.optional_modules import EXTRA_OF

ROOT = Path(__file__).parents[1]
PACKAGES = {"yaml": "pyyaml"}
# Of PyTorch; and what says in its own place, and not by an extra, what brings it.
OTHERS = {"torch", "typing_extensions", "crossalign", "gguf"}
BLOCKED = """
import sys
sys.modules[{module!r}] = None
from crossalign.{room} import {name}
"""


def imported() -> set[str]:
    """The first word of every module that the package imports, inside functions too."""
    found = set()
    for path in (ROOT / "crossalign").rglob("*.py"):
        if path.parent.name == "integrations":  # each of which names its library
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            if isinstance(node, ast.ImportFrom) and node.module:
                found.add(node.module.partition(".")[0])
    return found - sys.stdlib_module_names


def test_every_optional_module_has_the_extra_that_brings_it() -> None:
    assert imported() - OTHERS == EXTRA_OF.keys()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for module, extra in EXTRA_OF.items():
        brought = project["optional-dependencies"][extra]
        package = PACKAGES.get(module, module.replace("_", "-"))
        assert any(line.startswith(f"{package}>=") for line in brought), module


@pytest.mark.parametrize(
    ("module", "room", "name"),
    [
        ("jinja2", "analysis", "analyze"),
        ("matplotlib", "demo", "run_demo"),
        ("numpy", "analysis", "analyze"),
        ("tqdm", "analysis", "analyze"),
        ("transformers", "analysis", "analyze"),
    ],
)
def test_a_public_name_says_what_it_needs(module: str, room: str, name: str) -> None:
    """It said "No module named 'jinja2'" only."""
    code = BLOCKED.format(module=module, room=room, name=name)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    said = f"crossalign.{room}.{name} needs {module}"
    assert said in done.stderr.splitlines()[-1], done.stderr
    assert done.stderr.endswith(": pip install 'crossalign[train]'\n")


def test_a_module_of_nobody_keeps_its_error() -> None:
    code = BLOCKED.format(module="torch", room="analysis", name="analyze")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.endswith("import of torch halted; None in sys.modules\n")
