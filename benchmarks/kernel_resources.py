"""How many registers, how much stack and shared memory does every shipped kernel take?

Compiles each kernel in each shipped configuration for six architectures; needs no GPU. Reads the
machine code with the cuobjdump that Triton brings along.

    python -m benchmarks.kernel_resources            # prints the table
    python -m benchmarks.kernel_resources --write    # and puts it into benchmarks/results/

The file has a table for every Triton that is supported. For that of another version than installed:

    pip install --target .triton-3.6 --no-deps triton==3.6.0
    PYTHONPATH=.triton-3.6 python -m benchmarks.kernel_resources --write
"""

from __future__ import annotations

import argparse
import ast
import importlib
import json
import multiprocessing
import os
import pkgutil
import re
import subprocess
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.kernels.compile_case import CompileCase

TABLE = Path(__file__).parent / "results" / "kernel_resources.md"
# Bytes of shared memory that one block may have (CUDA C++ programming guide).
SHARED_LIMIT = {
    80: 163 * 1024, 86: 99 * 1024, 89: 99 * 1024, 90: 227 * 1024, 100: 227 * 1024, 120: 99 * 1024,
}  # fmt: skip
# A kernel that spills inside its product loop waits for local memory. A few registers spilled once
# per tile, around the masks of the heavier options, take some hundred of a tile's 20,000 cycles,
# less than a smaller tile would cost.
STACK_BUDGET_BYTES = 128
SPILL_BUDGET = 80

TENSOR_CORE = re.compile(r"\b(HMMA|HGMMA|IMMA|DMMA|QGMMA|UTC\w*MMA)\b")
VECTOR_COPY = re.compile(r"async_copy_global_to_local.*: tensor<\d+x!tt\.ptr")
COPIES = {"UTMALDG": "TMA", "LDGSTS": "cp.async"}


@dataclass(frozen=True)
class Row:
    """One kernel in one configuration on one architecture; sizes in bytes."""

    case: str
    arch: int
    num_warps: int
    num_stages: int
    registers: int
    stack: int
    spill_instructions: int
    shared: int
    tensor_core: str
    copies: str
    barriers: int
    shuffles: int
    vector_copies: int  # asynchronous copies of 1-D tensors in Triton's intermediate code


def kernel_modules() -> list[str]:
    import crossalign.kernels

    return sorted(
        f"crossalign.kernels.{module.name}"
        for module in pkgutil.iter_modules(crossalign.kernels.__path__)
    )


def kernels_in_source(module: str) -> set[str]:
    """Names of the kernels that a module defines: its @triton.jit functions named _..._kernel."""
    spec = importlib.util.find_spec(module)
    assert spec is not None and spec.origin is not None
    tree = ast.parse(Path(spec.origin).read_text())
    return {
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
        and node.name.endswith("_kernel")
        and any("jit" in ast.unparse(decorator) for decorator in node.decorator_list)
    }


def compile_cases() -> list[CompileCase]:
    """Every kernel in every shipped configuration; imported here, where the environment is set."""
    from benchmarks.kernels.pooling_cases import pooling_cases
    from benchmarks.kernels.tile_cases import tile_cases
    from benchmarks.kernels.vector_cases import vector_cases

    return [*tile_cases(), *vector_cases(), *pooling_cases()]


def divisible_by_16(case: CompileCase) -> dict[tuple[int, ...], list[list[object]]]:
    """What the launcher specializes on at common sizes: aligned pointers, sizes, strides."""
    parameters = {parameter.name: parameter for parameter in case.kernel.params}
    divisible = [["tt.divisibility", 16]]
    found: dict[tuple[int, ...], list[list[object]]] = {}
    for index, (name, kind) in enumerate(case.signature.items()):
        parameter = parameters[name]
        if parameter.do_not_specialize or parameter.do_not_specialize_on_alignment:
            continue
        parts = {(index, each): one for each, one in enumerate(kind)}
        for path, each in (parts if isinstance(kind, tuple) else {(index,): kind}).items():
            if each.startswith(("*", "i32", "i64")):
                found[path] = divisible
    return found


def measure(index: int, arch: int) -> Row:
    """Compiles one case in this process, which must not have Triton's interpreter switched on."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    case = compile_cases()[index]
    source = ASTSource(
        fn=case.kernel,
        signature=case.signature,
        constexprs=case.constexprs,
        attrs=divisible_by_16(case),
    )
    options = {"num_warps": case.num_warps, "num_stages": case.num_stages}
    compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(compiled.asm["cubin"])
        cubin.flush()
        usage = _cuobjdump("--dump-resource-usage", cubin.name)
        sass = _cuobjdump("--dump-sass", cubin.name)
    return Row(
        case=case.name,
        arch=arch,
        num_warps=case.num_warps,
        num_stages=case.num_stages,
        registers=int(_only(r"REG:(\d+)", usage)),
        stack=int(_only(r"STACK:(\d+)", usage)),
        spill_instructions=len(re.findall(r"\b(?:STL|LDL)\b", sass)),
        shared=int(compiled.metadata.shared),
        tensor_core=" ".join(sorted(set(TENSOR_CORE.findall(sass)))) or "-",
        copies=" ".join(name for code, name in COPIES.items() if code in sass) or "-",
        barriers=len(re.findall(r"\bBAR\b", sass)),
        shuffles=len(re.findall(r"\bSHFL\b", sass)),
        vector_copies=len(VECTOR_COPY.findall(compiled.asm["ttgir"])),
    )


def measure_all(jobs: int, archs: list[int], names: list[str] | None = None) -> list[Row]:
    """Every case (or those of the names) on every architecture, in processes without Triton's
    interpreter."""
    os.environ.pop("TRITON_INTERPRET", None)
    tasks = [
        (index, arch)
        for index, case in enumerate(compile_cases())
        for arch in archs
        if arch in case.architectures and (names is None or case.name in names)
    ]
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=spawn) as pool:
        return list(pool.map(measure, *zip(*tasks, strict=True))) if tasks else []


def versions() -> str:
    """The compiler decides the numbers, so the table says which compiler."""
    import triton

    release = re.findall(r"V([\d.]+)", _nvidia_tool("ptxas", "--version"))[0]
    blackwell = re.findall(r"V([\d.]+)", _nvidia_tool("ptxas-blackwell", "--version"))[0]
    return f"triton {triton.__version__}, ptxas {release} (sm_100: {blackwell})"


def source_line() -> str:
    """What the table says of the kernels that it was made from."""
    from benchmarks.kernels.fingerprint import source_digest

    return f"Digest of the kernels and their configurations: {source_digest(compile_cases())}."


HEAD = """# Resources of every shipped kernel configuration

Regenerate with `make resources`, and for another Triton as benchmarks/kernel_resources.py says.
Registers and stack bytes are per thread, shared memory bytes per block; spills count the
instructions that move registers to or from local memory. Barriers and shuffles count the
instructions of a whole kernel, in which Triton may have a loop's body twice.
"""


def section_of(compilers: str, text: str) -> str:
    """The part of the file that was made with these compilers, by their Triton's version."""
    version = compilers.split(",")[0]
    return next((part for part in text.split("\n## ")[1:] if part.startswith(f"{version},")), "")


def with_section(rows: list[Row], compilers: str, text: str) -> str:
    """The file with the table of these rows, which replaces one of the same Triton."""
    new, old = render(rows, compilers), section_of(compilers, text)
    parts = [part for part in text.split("\n## ")[1:] if part != old]
    sections = sorted([part.rstrip("\n") for part in parts] + [new.rstrip("\n")])
    return "\n## ".join([HEAD, *(f"{each}\n" for each in sections)])


def render(rows: list[Row], compilers: str) -> str:
    """The section of one compiler."""
    lines = [
        compilers,
        "",
        source_line(),
        "",
        "| kernel configuration | arch | warps | stages | registers | stack | spills | shared |"
        " tensor cores | copies | barriers | shuffles |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row.case} | sm_{row.arch} | {row.num_warps} | {row.num_stages} | {row.registers} "
            f"| {row.stack} | {row.spill_instructions} | {row.shared} | {row.tensor_core} "
            f"| {row.copies} | {row.barriers} | {row.shuffles} |"
        )
    return "\n".join(lines) + "\n"


def _cuobjdump(option: str, path: str) -> str:
    return _nvidia_tool("cuobjdump", option, path)


def _nvidia_tool(name: str, *arguments: str) -> str:
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    return subprocess.run([tool, *arguments], check=True, capture_output=True, text=True).stdout


def _only(pattern: str, text: str) -> str:
    found = re.findall(pattern, text)
    if len(found) != 1:
        raise RuntimeError(f"expected one match of {pattern!r} in the output of cuobjdump: {text}")
    return found[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help=f"replace {TABLE.name} in results/")
    parser.add_argument("--json", type=Path, help="also write the rows, as one JSON list")
    parser.add_argument("--jobs", type=int, default=2, help="processes (default 2)")
    parser.add_argument("--arch", type=int, nargs="+", default=sorted(SHARED_LIMIT))
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these configurations only")
    arguments = parser.parse_args()
    rows = measure_all(arguments.jobs, arguments.arch, arguments.only)
    table = render(rows, versions())
    print(table, end="")
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(row) for row in rows]))
    if arguments.write:
        TABLE.parent.mkdir(exist_ok=True)
        old = TABLE.read_text() if TABLE.exists() else ""
        TABLE.write_text(with_section(rows, versions(), old))


if __name__ == "__main__":
    main()
