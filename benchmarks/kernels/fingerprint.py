"""A digest of all that the registers of the kernels follow from, apart from the compiler.

The table of resources names the digest of what was compiled, so a test sees without compiling
whether the table is out of date. Comments and docstrings do not count.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable
from pathlib import Path

from benchmarks.kernels.compile_case import CompileCase

PACKAGE = Path(__file__).parents[2] / "crossalign"
CONSTANTS = PACKAGE / "precision.py"  # the kernels read them


def source_digest(cases: Iterable[CompileCase]) -> str:
    """16 hexadecimal digits."""
    digest = hashlib.sha256()
    for path in [CONSTANTS, *sorted((PACKAGE / "kernels").glob("*.py"))]:
        for statement in compiled_statements(path.read_text(encoding="utf-8")):
            digest.update(f"{path.name} {statement}\n".encode())
    for case in cases:
        told = (case.name, case.kernel.__name__, case.signature, case.constexprs)
        shape = (case.num_warps, case.num_stages, case.architectures)
        digest.update(f"{told} {shape}\n".encode())
    return digest.hexdigest()[:16]


def compiled_statements(source: str) -> list[str]:
    """The kernels, what they call, records of arguments and constants, each as its syntax tree."""
    kept: list[ast.stmt] = []
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef):
            if not any("jit" in ast.unparse(each) for each in node.decorator_list):
                continue
            if ast.get_docstring(node) is not None:
                node.body = node.body[1:] or [ast.Pass()]
            kept.append(node)
        elif isinstance(node, ast.Assign | ast.AnnAssign | ast.ClassDef):
            kept.append(node)
    return [ast.dump(node) for node in kept]
