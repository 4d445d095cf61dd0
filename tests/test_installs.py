"""pip installs the package on three kinds of machine, for this Python and for one other.

What a machine has is what its PATH holds: no compiler, a compiler without nvcc, or both. The other
Python is any `python3.N` on the PATH that has PyTorch and setuptools.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.built_extension import copy_sources, run_build

pytestmark = pytest.mark.slow

COMPILER = ("c++", "g++", "gcc", "cc", "as", "ld")
HIDDEN = ("CC", "CXX", "CUDA_HOME", "PYTHONPATH")
CAN_BUILD = "import setuptools, pip, sys, torch; print(sys.version_info.minor)"
# One call of what every install promises, and of the operator that only the extension has.
USE = """
import torch, crossalign
query, key = torch.eye(8, requires_grad=True), torch.eye(8)
loss = crossalign.fused_contrastive_loss(query, key, temperature=1.0)
loss.backward()
loaded = crossalign.extension_available()
assert loaded == hasattr(torch.ops.crossalign_ext, "pull_rows")
print(round(loss.item(), 4), loaded, crossalign.__path__[0])
"""


def minor_version(python: str) -> int | None:
    """The N of a Python 3.N that can build the package; None for one that cannot."""
    done = subprocess.run([python, "-c", CAN_BUILD], capture_output=True, text=True, check=False)
    return int(done.stdout) if done.returncode == 0 else None


def other_python() -> str:
    """Another Python, from 3.11 on, that has PyTorch; a skip where there is none."""
    for minor in range(11, 20):
        found = shutil.which(f"python3.{minor}")
        if minor != sys.version_info.minor and found and minor_version(found) == minor:
            return found
    pytest.skip("needs a second Python on the PATH, 3.11 or newer, with torch and setuptools")


@pytest.fixture(scope="module", params=["this", "other"])
def python(request: pytest.FixtureRequest) -> str:
    return sys.executable if request.param == "this" else other_python()


def search_path(folder: Path, machine: str) -> str:
    """A PATH on which `machine` is what can be found."""
    if machine == "nvcc":
        if shutil.which("nvcc") is None:
            pytest.skip("needs nvcc")
        return os.environ["PATH"]
    folder.mkdir()
    for name in COMPILER if machine == "compiler" else ():
        if (tool := shutil.which(name)) is None:
            pytest.skip(f"needs {name}")
        (folder / name).symlink_to(tool)
    return str(folder)


def new_environment(python: str, folder: Path) -> Path:
    """The interpreter of a new environment, which also finds what `python` has installed."""
    subprocess.run([python, "-m", "venv", "--without-pip", str(folder)], check=True)
    command = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    installed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "installed_before.pth").write_text(installed)
    return folder / "bin" / "python"


@pytest.mark.parametrize(
    ("machine", "wheel", "extension"),
    [
        ("nothing", "py3-none-any", r"not built; .*"),
        ("compiler", r"cp311-abi3-linux_\w+", r"loaded; built with PyTorch \S+, without CUDA"),
        ("nvcc", r"cp311-abi3-linux_\w+", r"loaded; built with PyTorch \S+, CUDA for 9\.0"),
    ],
)
def test_pip_installs_what_the_machine_can_build(
    python: str,
    machine: str,
    wheel: str,
    extension: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in HIDDEN:
        monkeypatch.delenv(name, raising=False)
    environment = {"PATH": search_path(tmp_path / "tools", machine)}
    installed = new_environment(python, tmp_path / "environment")
    pip = [str(installed), "-m", "pip", "install", "--no-build-isolation", "--no-deps", "-v"]
    if machine == "nvcc":  # of three architectures one is enough here, and faster
        environment["TORCH_CUDA_ARCH_LIST"] = "9.0"
    done = run_build([*pip, "--ignore-installed", "."], copy_sources(tmp_path), **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(rf"crossalign-[\d.]+-{wheel}\.whl", done.stdout), done.stdout
    assert ("no C++ compiler" in done.stdout + done.stderr) == (machine == "nothing")

    command = [str(installed.with_name("crossalign")), "info", "--json"]
    told = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert told["extension"] == (machine != "nothing")
    assert re.fullmatch(extension, told["notes"]["extension"]), told["notes"]
    assert told["python"].startswith(f"3.{minor_version(python)}.")

    command = [str(installed), "-W", "error", "-c", USE]
    used = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, check=True
    ).stdout.split()
    # Eight one-hot rows at temperature 1: log(e + 7) - 1.
    assert used[:2] == ["1.274", str(machine != "nothing")]
    assert Path(used[2]).is_relative_to(tmp_path / "environment")
