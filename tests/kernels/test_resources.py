"""Every shipped kernel compiles for every architecture, and takes what the table says it takes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="the kernels need triton")

from benchmarks import kernel_resources
from benchmarks.kernel_resources import Row

ROOT = Path(__file__).parents[2]
# One worker compiles once for all of these tests.
pytestmark = pytest.mark.xdist_group("kernel_resources")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    """Compiled in a process of its own: here the kernels are decorated for the interpreter."""
    folder = tmp_path_factory.mktemp("kernel_resources")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    rows_file = str(folder / "rows.json")
    command = [sys.executable, "-m", "benchmarks.kernel_resources", "--json", rows_file]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [Row(**row) for row in json.loads((folder / "rows.json").read_text())]


@pytest.mark.parametrize("module", kernel_resources.kernel_modules())
def test_every_kernel_has_a_compile_case(module: str) -> None:
    with_case = {case.kernel.__name__ for case in kernel_resources.compile_cases()}
    assert kernel_resources.kernels_in_source(module) <= with_case


def test_every_configuration_compiles_for_every_architecture(rows: list[Row]) -> None:
    names = [
        (case.name, arch)
        for case in kernel_resources.compile_cases()
        for arch in case.architectures
    ]
    assert len(names) == len(set(names)), "two configurations share a name"
    expected = set(names)
    assert {arch for _, arch in expected} == set(kernel_resources.SHARED_LIMIT)
    assert {(row.case, row.arch) for row in rows} == expected
    assert expected, "no kernel module describes a configuration"


def test_kernels_fit_the_architecture(rows: list[Row]) -> None:
    too_large = [row for row in rows if row.shared > kernel_resources.SHARED_LIMIT[row.arch]]
    assert not too_large, "more shared memory than one block may have"
    if not kernel_resources.versions().startswith(("triton 3.6.", "triton 3.7.")):
        pytest.skip("the tiles were chosen for what Triton 3.6 and 3.7 spill")
    spilling = [
        row
        for row in rows
        if row.stack > kernel_resources.STACK_BUDGET_BYTES
        or row.spill_instructions > kernel_resources.SPILL_BUDGET
    ]
    assert not spilling, "over the budget of stack and spills"


def test_no_vector_is_copied_ahead_of_its_stores(rows: list[Row]) -> None:
    """Partial sums of columns are stored in one tile and loaded in the next. Were that load made an
    asynchronous copy that runs ahead, it would bring the sum before the store."""
    assert not [row for row in rows if row.vector_copies]


def test_the_committed_table_is_current(rows: list[Row]) -> None:
    committed = kernel_resources.TABLE.read_text()
    compilers = kernel_resources.versions()
    if compilers not in committed:
        pytest.skip(f"the table was made with another compiler than {compilers}")
    assert kernel_resources.render(rows, compilers) == committed, "run `make resources`"
