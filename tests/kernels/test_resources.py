"""Every shipped kernel compiles for every architecture, and takes what the table says it takes.

The table names the digest of what it was made from, so most of it is checked without compiling. One
configuration of each kernel is compiled again; all of them, which takes minutes, in a slow test.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="the kernels need triton")

from benchmarks import kernel_resources
from benchmarks.kernel_resources import Row
from benchmarks.kernels.fingerprint import compiled_statements

ROOT = Path(__file__).parents[2]
NUMBERS = ("num_warps", "num_stages", "registers", "stack", "spill_instructions", "shared")


# Those that the file has tables of.
COMPILERS = re.findall(r"^## (triton [\d.]+),", kernel_resources.TABLE.read_text(), re.MULTILINE)


def section(compiler: str) -> str:
    return kernel_resources.section_of(f"{compiler},", kernel_resources.TABLE.read_text())


def committed(compiler: str) -> dict[tuple[str, int], dict[str, int]]:
    """(configuration, architecture) -> the numbers of its row in the compiler's table."""
    rows = re.findall(
        r"^\| (\S+) \| sm_(\d+) " + r"\| (\d+) " * len(NUMBERS) + r"\|",
        section(compiler),
        flags=re.MULTILINE,
    )
    return {
        (name, int(arch)): dict(zip(NUMBERS, map(int, numbers), strict=True))
        for name, arch, *numbers in rows
    }


def compiled(folder: Path, *flags: str) -> list[Row]:
    """In a process of its own: here the kernels are decorated for the interpreter."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    rows_file = str(folder / "rows.json")
    command = [sys.executable, "-m", "benchmarks.kernel_resources", "--json", rows_file, *flags]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [Row(**row) for row in json.loads(Path(rows_file).read_text())]


def installed_compiler() -> str:
    """Its Triton's version, if the file has its table."""
    compilers = kernel_resources.versions()
    if compilers not in kernel_resources.TABLE.read_text():
        pytest.skip(f"the tables were made with other compilers than {compilers}")
    return compilers.split(",")[0]


@pytest.mark.parametrize("module", kernel_resources.kernel_modules())
def test_every_kernel_has_a_compile_case(module: str) -> None:
    with_case = {case.kernel.__name__ for case in kernel_resources.compile_cases()}
    assert kernel_resources.kernels_in_source(module) <= with_case


def test_there_is_a_table_of_each_triton() -> None:
    """That of PyTorch 2.11, and that of today."""
    assert COMPILERS == ["triton 3.6.0", "triton 3.7.1"]


@pytest.mark.parametrize("compiler", COMPILERS)
def test_the_table_has_every_configuration_on_every_architecture(compiler: str) -> None:
    names = [
        (case.name, arch)
        for case in kernel_resources.compile_cases()
        for arch in case.architectures
    ]
    assert len(names) == len(set(names)), "two configurations share a name"
    assert {arch for _, arch in names} == set(kernel_resources.SHARED_LIMIT)
    assert committed(compiler).keys() == set(names) != set(), "run `make resources`"


@pytest.mark.parametrize("compiler", COMPILERS)
def test_kernels_fit_the_architecture(compiler: str) -> None:
    """The tiles were chosen for what Triton 3.6 and 3.7 spill, with which the table is made."""
    for (name, arch), row in committed(compiler).items():
        assert row["shared"] <= kernel_resources.SHARED_LIMIT[arch], (name, arch)
        assert row["stack"] <= kernel_resources.STACK_BUDGET_BYTES, (name, arch)
        assert row["spill_instructions"] <= kernel_resources.SPILL_BUDGET, (name, arch)


@pytest.mark.parametrize("compiler", COMPILERS)
def test_the_table_is_of_the_kernels_of_today(compiler: str) -> None:
    assert kernel_resources.source_line() in section(compiler), "run `make resources`"


def test_a_table_replaces_that_of_the_same_triton_only() -> None:
    def texts(*compilers: str) -> str:
        text = ""
        for compiler in compilers:
            text = kernel_resources.with_section([], compiler, text)
        return text

    text = texts("triton 3.7.1, ptxas 1", "triton 3.6.0, ptxas 1", "triton 3.7.1, ptxas 2")
    assert text == texts("triton 3.6.0, ptxas 1", "triton 3.7.1, ptxas 2")
    assert text.startswith(kernel_resources.HEAD) and text.count("## triton") == 2


def test_one_configuration_of_each_kernel_takes_what_the_table_says(tmp_path: Path) -> None:
    compiler = installed_compiler()
    last = {
        case.kernel.__name__: case.name
        for case in kernel_resources.compile_cases()
        if 90 in case.architectures
    }
    rows, table = compiled(tmp_path, "--arch", "90", "--only", *last.values()), committed(compiler)
    assert {row.case for row in rows} == set(last.values())
    for row in rows:
        found = {name: getattr(row, name) for name in NUMBERS}
        assert found == table[row.case, row.arch], f"{row.case}: run `make resources`"
    assert_no_vector_is_copied_ahead_of_its_stores(rows)


@pytest.mark.slow
def test_every_configuration_takes_what_the_table_says(tmp_path: Path) -> None:
    rows = compiled(tmp_path)
    assert {(row.case, row.arch) for row in rows} == committed("triton 3.7.1").keys()
    assert_no_vector_is_copied_ahead_of_its_stores(rows)
    installed_compiler()
    compilers, text = kernel_resources.versions(), kernel_resources.TABLE.read_text()
    assert kernel_resources.with_section(rows, compilers, text) == text, "run `make resources`"


def assert_no_vector_is_copied_ahead_of_its_stores(rows: list[Row]) -> None:
    """Partial sums of columns are stored in one tile and loaded in the next. Were that load made an
    asynchronous copy that runs ahead, it would bring the sum before the store."""
    assert not [row for row in rows if row.vector_copies]


@pytest.mark.parametrize(
    ("old", "new", "is_same"),
    [
        ("tl.store(p, x)", "tl.store(p, x)  # a comment", True),
        ('"""Doc."""', '"""Another."""', True),
        ("def launch(): pass", "def launch(): return 1", True),
        ("tl.store(p, x)", "tl.store(p, x + 1)", False),
        ("LN_2 = 0.6", "LN_2 = 0.7", False),
    ],
)
def test_what_the_digest_is_of(old: str, new: str, is_same: bool) -> None:
    kernel = '@triton.jit\ndef _k(p, x):\n    """Doc."""\n    tl.store(p, x)\n'
    source = f"LN_2 = 0.6\n{kernel}def launch(): pass\n"
    changed = source.replace(old, new)
    assert changed != source
    assert (compiled_statements(source) == compiled_statements(changed)) == is_same
