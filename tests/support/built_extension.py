"""The compiled extension for tests: the one built in place, or built once per state of csrc/."""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
NO_NVCC = {"CUDA_HOME": "/nonexistent"}
# What pip calls once it has prepared the build environment.
BUILD_WHEEL = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"


def copy_sources(folder: Path) -> Path:
    """What a build needs, in a folder of its own: a build writes beside its sources."""
    copy = folder / "sources"
    for name in ("csrc", "crossalign"):
        shutil.copytree(
            ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "*.so")
        )
    for name in ("pyproject.toml", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    (copy / "README.md").write_text("# crossalign\n")
    return copy


def run_build(
    command: list[str], sources: Path, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Runs a build command with these variables added; the caller looks at the return code."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in ("CROSSALIGN_BUILD_EXTENSION", "TORCH_CUDA_ARCH_LIST")
    }
    return subprocess.run(
        command, cwd=sources, env=kept | environment, capture_output=True, text=True, check=False
    )


def build_wheel(
    sources: Path, folder: Path, **environment: str
) -> subprocess.CompletedProcess[str]:
    folder.mkdir(exist_ok=True)
    return run_build([sys.executable, "-c", BUILD_WHEEL, str(folder)], sources, **environment)


@functools.cache
def extension_folder() -> Path:
    """A folder with crossalign/_gather_negatives.abi3.so; built here with CUDA only for a GPU."""
    sources = [ROOT / "pyproject.toml", *sorted((ROOT / "csrc").glob("*.*"))]
    in_place = ROOT / "crossalign" / "_gather_negatives.abi3.so"
    if in_place.exists():  # import finds it first, and a process loads no second one
        compiled = [path for path in sources if path.suffix in (".cpp", ".cu", ".h")]
        newest = max(path.stat().st_mtime for path in compiled)
        assert in_place.stat().st_mtime > newest, f"{in_place} is older than csrc/; delete it"
        return ROOT
    environment = dict(NO_NVCC)
    if torch.cuda.is_available():
        major, minor = torch.cuda.get_device_capability()
        environment = {"TORCH_CUDA_ARCH_LIST": f"{major}.{minor}"}
    state = hashlib.sha256(repr((torch.__version__, sys.version, environment)).encode())
    for path in sources:
        state.update(path.read_bytes())
    target = Path(tempfile.gettempdir(), f"crossalign-extension-{state.hexdigest()[:16]}")
    if target.exists():
        return target
    if shutil.which("c++") is None:
        pytest.skip("needs a C++ compiler to build the extension")
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", "import setuptools; setuptools.setup()", "build_ext"]
        command += ["--build-lib", f"{folder}/lib", "--build-temp", f"{folder}/temp"]
        wanted = environment | {"CROSSALIGN_BUILD_EXTENSION": "1"}
        done = run_build(command, copy_sources(Path(folder)), **wanted)
        assert done.returncode == 0, done.stderr
        unique = f"{target}.{os.getpid()}"
        shutil.copytree(f"{folder}/lib", unique)
        try:  # another test process may have been faster
            os.rename(unique, target)
        except OSError:
            shutil.rmtree(unique)
    return target


def use_extension(folder: Path) -> None:
    """Makes this process find the extension of extension_folder()."""
    import crossalign
    from crossalign.distributed import symmetric_gather

    package = str(folder / "crossalign")
    if folder != ROOT and package not in crossalign.__path__:
        crossalign.__path__.insert(0, package)
        symmetric_gather._load.cache_clear()
    assert symmetric_gather.load_extension() is not None, symmetric_gather.extension_status()
