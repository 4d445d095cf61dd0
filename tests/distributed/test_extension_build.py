"""The extension builds wherever it can, the package installs wherever it cannot, and says which."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import ModuleType

import pytest

from tests.support.built_extension import NO_NVCC, ROOT, build_wheel, copy_sources, run_build

PURE = "crossalign: installed as pure Python, no extension: "
REPORT = (
    "import torch, crossalign.distributed.gather as gather; print(gather.extension_status()); "
    "print(hasattr(torch.ops.crossalign_ext, 'pull_rows'))"
)


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    return copy_sources(tmp_path)


@pytest.fixture
def build_extension() -> ModuleType:
    """csrc/build_extension.py, which setuptools loads by path."""
    path = ROOT / "csrc" / "build_extension.py"
    spec = importlib.util.spec_from_file_location("build_extension", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def wheel_in(folder: Path) -> str:
    (wheel,) = folder.glob("*.whl")
    return wheel.name


def report_of(target: Path) -> list[str]:
    """extension_status() and whether the operators are there, in a fresh process."""
    code = f"import sys; sys.path.insert(0, {str(target)!r}); {REPORT}"
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, cwd=target, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where pip installed the package; it compiles the extension, which takes a while."""
    folder = tmp_path_factory.mktemp("installed")
    target = folder / "site"
    command = [sys.executable, "-m", "pip", "install", "--no-build-isolation", "--no-deps"]
    done = run_build([*command, "--target", str(target), "."], copy_sources(folder), **NO_NVCC)
    assert done.returncode == 0, done.stderr
    return target


def test_pip_builds_the_cpu_extension_without_nvcc(installed: Path) -> None:
    assert [path.name for path in (installed / "crossalign").glob("_gather*")] == [
        "_gather_negatives.abi3.so"
    ]
    assert report_of(installed) == [
        f"loaded; built with PyTorch {torch_version()}, without CUDA",
        "True",
    ]


def test_extension_uses_only_the_stable_abi(installed: Path) -> None:
    """No C++ symbol of PyTorch: those change with every release."""
    library = installed / "crossalign" / "_gather_negatives.abi3.so"
    listing = subprocess.check_output(["nm", "-D", "--undefined-only", library], text=True)
    names = [line.split()[-1] for line in listing.splitlines()]
    assert any(name.startswith("aoti_torch_") for name in names)
    mangled = re.compile(r"_Z\w*(2at|3c10|5torch|8c10_cuda)")
    assert not [name for name in names if mangled.match(name)]


def test_macros_may_be_lists(sources: Path) -> None:
    """Setuptools before 82 hands on pyproject.toml's lists; with PyTorch 2.11 that build failed."""
    setup = (
        "import setuptools; made = setuptools.Distribution(); made.parse_config_files(); "
        "(extension,) = made.ext_modules; "
        "extension.define_macros = [list(macro) for macro in extension.define_macros]; "
        "made.get_command_obj('build_ext').inplace = True; made.run_command('build_ext')"
    )
    wanted = {"CROSSALIGN_BUILD_EXTENSION": "1", **NO_NVCC}
    done = run_build([sys.executable, "-c", setup], sources, **wanted)
    assert done.returncode == 0, done.stderr
    assert (sources / "crossalign" / "_gather_negatives.abi3.so").exists()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
def test_cuda_half_builds_without_gpu_and_loads_beside_cpu_torch(sources: Path) -> None:
    library = build_in_place(sources, TORCH_CUDA_ARCH_LIST="9.0")
    assert report_of(sources) == [
        f"loaded; built with PyTorch {torch_version()}, CUDA for 9.0",
        "True",
    ]
    cuobjdump = cuobjdump_of_triton()
    usage = subprocess.check_output([cuobjdump, "-res-usage", library], text=True)
    stacks = re.findall(r"STACK:(\d+)", usage)
    assert "sm_90" in usage and len(stacks) > 30
    assert set(stacks) == {"0"}, "a kernel spills"


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({"CROSSALIGN_BUILD_EXTENSION": "0"}, "CROSSALIGN_BUILD_EXTENSION=0"),
        ({"CXX": "no-such-compiler"}, "no C++ compiler, no-such-compiler is not on the PATH"),
        ({"PATH": "/nonexistent"}, "no C++ compiler"),
    ],
)
def test_pure_python_where_nothing_can_be_built(
    sources: Path, tmp_path: Path, environment: dict[str, str], reason: str
) -> None:
    done = build_wheel(sources, tmp_path / "wheel", **environment)
    assert done.returncode == 0, done.stderr
    assert f"{PURE}{reason}" in done.stderr
    assert wheel_in(tmp_path / "wheel").endswith("-py3-none-any.whl")


def test_failing_compiler_leaves_pure_python(sources: Path, tmp_path: Path) -> None:
    done = build_wheel(sources, tmp_path / "wheel", CXX="false", **NO_NVCC)
    assert done.returncode == 0, done.stderr
    assert f"{PURE}the build failed: " in done.stderr
    assert wheel_in(tmp_path / "wheel").endswith(".whl")


@pytest.mark.parametrize("compiler", ["no-such-compiler", "false"])
def test_extension_asked_for_and_not_built_is_an_error(
    sources: Path, tmp_path: Path, compiler: str
) -> None:
    environment = {"CROSSALIGN_BUILD_EXTENSION": "1", "CXX": compiler, **NO_NVCC}
    done = build_wheel(sources, tmp_path / "wheel", **environment)
    assert done.returncode != 0
    assert "CROSSALIGN_BUILD_EXTENSION=1, but the extension was not built: " in done.stderr
    assert not list((tmp_path / "wheel").glob("*.whl"))


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (None, "no PyTorch here; install it first"),
        ("2.10.1+cpu", "needs PyTorch 2.11 or newer, got 2.10.1"),
        ("2.11.0+cu130", ""),
    ],
)
def test_pytorch_that_is_missing_or_too_old(
    build_extension: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    found: str | None,
    reason: str,
) -> None:
    """Looked for in the build environment, and in that which pip installs into."""
    monkeypatch.delenv("CROSSALIGN_BUILD_EXTENSION", raising=False)
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr(build_extension.sysconfig, "get_path", lambda name: str(tmp_path))
    if found:
        (tmp_path / "torch" / "include").mkdir(parents=True)
        notes = tmp_path / f"torch-{found}.dist-info"
        notes.mkdir()
        (notes / "METADATA").write_text(f"Metadata-Version: 2.1\nName: torch\nVersion: {found}\n")
        assert build_extension.find_torch() == (tmp_path / "torch", found)
    told = build_extension.what_is_missing()
    assert reason in told and bool(reason) == bool(told)


@pytest.mark.parametrize("has_ninja", [False, True])
def test_objects_are_compiled_with_and_without_ninja(
    build_extension: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, has_ninja: bool
) -> None:
    if has_ninja and shutil.which("ninja") is None:
        pytest.skip("needs ninja")
    if not has_ninja:
        monkeypatch.setattr(build_extension.shutil, "which", lambda name: None)
    source = tmp_path / "a file.c"
    source.write_text("int answer(void) { return ANSWER; }")
    commands = {str(source): ["cc", "-DANSWER=6 * 7", "-c", str(source)]}
    objects = build_extension.compile_objects(commands, tmp_path / "out put")
    assert [Path(path).name for path in objects] == ["a file.c.o"] and Path(objects[0]).exists()
    assert (tmp_path / "out put" / "build.ninja").exists() == has_ninja
    commands[str(source)].insert(1, "-DANSWER=(")
    source.write_text("int answer(void) { return ANSWER }")
    with pytest.raises(subprocess.CalledProcessError):
        build_extension.compile_objects(commands, tmp_path / "out put")


def test_architectures_come_from_pytorchs_variable(build_extension: ModuleType) -> None:
    assert build_extension.gencode_flags("8.0;9.0a 10.0+PTX") == [
        "-gencode=arch=compute_80,code=sm_80",
        "-gencode=arch=compute_90a,code=sm_90a",
        "-gencode=arch=compute_100,code=[sm_100,compute_100]",
    ]
    with pytest.raises(build_extension.BaseError, match=r"must read like 9\.0;10\.0\+PTX, got 'H"):
        build_extension.gencode_flags("Hopper")


def build_in_place(sources: Path, **environment: str) -> Path:
    """The shared library, built into the copied package."""
    command = [sys.executable, "-c", "import setuptools; setuptools.setup()", "build_ext"]
    wanted = {"CROSSALIGN_BUILD_EXTENSION": "1"} | environment
    done = run_build([*command, "--inplace"], sources, **wanted)
    assert done.returncode == 0, done.stderr
    return sources / "crossalign" / "_gather_negatives.abi3.so"


def cuobjdump_of_triton() -> Path:
    triton = pytest.importorskip("triton", reason="needs the cuobjdump that Triton brings along")
    return Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


def torch_version() -> str:
    """As its wheel's metadata have it, which pip and the build see."""
    return metadata.version("torch")
