"""Size budgets: lines of files, functions and kernels, kernel parameters, files in a folder.

A function counts without its docstring, a kernel whole.
"""

from __future__ import annotations

import ast
import functools
import subprocess
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILE_LINES, FUNCTION_LINES, KERNEL_LINES, KERNEL_PARAMETERS, FOLDER_FILES = 300, 60, 80, 24, 24
# What is over a budget today. The lists may only shrink: an entry that fits again must go.
# One line an argument in its signature, and one to hand it on by name: **options would hide the
# signature from help(), and torch.compile cannot look through locals().
LONG_FUNCTIONS = {"crossalign/contrastive/loss.py fused_contrastive_loss"}
LARGE_KERNELS: set[str] = set()

Function = ast.FunctionDef | ast.AsyncFunctionDef


def project_files() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if listed.returncode:
        pytest.skip("needs a git checkout, to tell files of the project from others")
    return [Path(line) for line in listed.stdout.splitlines() if (ROOT / line).exists()]


@functools.cache
def functions() -> list[tuple[str, Function]]:
    """("path name", function) of every function of the project."""
    return [
        (f"{path} {node.name}", node)
        for path in project_files()
        if path.suffix == ".py"
        for node in ast.walk(ast.parse((ROOT / path).read_text()))
        if isinstance(node, Function)
    ]


def is_kernel(function: Function) -> bool:
    return any("triton.jit" in ast.unparse(each) for each in function.decorator_list)


def num_lines(node: ast.AST) -> int:
    first, last = getattr(node, "lineno", 0), getattr(node, "end_lineno", 0)
    return last - first + 1


def lines_without_docstring(function: Function) -> int:
    total = num_lines(function)
    return total - num_lines(function.body[0]) if ast.get_docstring(function) else total


def num_parameters(function: Function) -> int:
    arguments = function.args
    return len(arguments.posonlyargs + arguments.args + arguments.kwonlyargs)


def test_files_fit() -> None:
    lines = {
        str(path): len((ROOT / path).read_text().splitlines())
        for path in project_files()
        if path.suffix in (".py", ".cpp", ".cu", ".h")
    }
    assert not {path: count for path, count in lines.items() if count > FILE_LINES}


def test_functions_fit() -> None:
    long = {
        name
        for name, function in functions()
        if not is_kernel(function) and lines_without_docstring(function) > FUNCTION_LINES
    }
    assert long == LONG_FUNCTIONS


def test_kernels_fit() -> None:
    large = {
        name
        for name, function in functions()
        if is_kernel(function)
        and (num_lines(function) > KERNEL_LINES or num_parameters(function) > KERNEL_PARAMETERS)
    }
    assert large == LARGE_KERNELS


def test_folders_fit() -> None:
    counts = Counter(path.parent for path in project_files())
    del counts[Path("benchmarks/results")]  # every measurement adds its own
    assert not {str(folder): count for folder, count in counts.items() if count > FOLDER_FILES}


def test_functions_are_measured_as_stated() -> None:
    text = 'def f(a, *, b):\n    """One.\n\n    Two."""\n    return a\n'
    function = ast.parse(text).body[0]
    assert isinstance(function, Function)
    assert (num_lines(function), lines_without_docstring(function)) == (5, 2)
    assert num_parameters(function) == 2
