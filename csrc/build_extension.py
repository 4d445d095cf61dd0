"""Builds crossalign._gather_negatives: C++ always, CUDA where nvcc is, whether or not a GPU is.

Without a compiler, or without PyTorch in the build environment (pip's isolated one has none), the
package is installed as pure Python, and one line says so. CROSSALIGN_BUILD_EXTENSION=1 makes that
an error, =0 skips the build; TORCH_CUDA_ARCH_LIST overrides the architectures. Nothing is fetched.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from importlib import metadata, util
from pathlib import Path

from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.errors import BaseError, CCompilerError

SWITCH = "CROSSALIGN_BUILD_EXTENSION"
DEFAULT_ARCHS = ("8.0", "9.0", "10.0")  # those that nvcc knows, and portable code for the last


def what_is_missing() -> str:
    """Why the extension cannot be built here; empty if it can."""
    compiler = os.environ.get("CXX") or sysconfig.get_config_var("CXX") or "c++"
    if os.environ.get(SWITCH) == "0":
        return f"{SWITCH}=0"
    if util.find_spec("torch") is None:
        return "no PyTorch in the build environment; pip needs --no-build-isolation to see yours"
    if [int(part) for part in metadata.version("torch").split(".")[:2]] < [2, 11]:
        return f"the stable ABI needs PyTorch 2.11 or newer, got {metadata.version('torch')}"
    if shutil.which(shlex.split(compiler)[0]) is None:
        return f"no C++ compiler, {compiler} is not on the PATH"
    return ""


def go_without(reason: str) -> None:
    """Says that the package becomes pure Python, or stops where the extension was asked for."""
    if os.environ.get(SWITCH) == "1":
        raise BaseError(f"{SWITCH}=1, but the extension was not built: {reason}")
    print(f"crossalign: installed as pure Python, no extension: {reason}", file=sys.stderr)


def gencode_flags(archs: str) -> list[str]:
    """PyTorch's way of writing architectures, "9.0;10.0+PTX", as nvcc's."""
    flags = []
    for arch in re.split(r"[; ]+", archs.strip("; ")):
        if not (match := re.fullmatch(r"(\d+)\.(\d[af]?)(\+PTX)?", arch)):
            raise BaseError(f"TORCH_CUDA_ARCH_LIST must read like 9.0;10.0+PTX, got {archs!r}")
        number = match[1] + match[2]
        code = f"[sm_{number},compute_{number}]" if match[3] else f"sm_{number}"
        flags.append(f"-gencode=arch=compute_{number},code={code}")
    return flags


class BuildExtension(build_ext):
    def run(self):
        reason = what_is_missing()
        try:
            if not reason:
                return super().run()
        except (BaseError, CCompilerError, OSError, subprocess.CalledProcessError) as error:
            reason = f"the build failed: {str(error)[:200]}"
        self.extensions = []
        go_without(reason)

    def build_extension(self, ext):
        home = os.environ.get("CUDA_HOME")
        nvcc = shutil.which(os.path.join(home, "bin", "nvcc") if home else "nvcc")
        torch = Path(util.find_spec("torch").origin).parent
        archs = ""
        if nvcc:
            known = subprocess.check_output([nvcc, "--list-gpu-arch"], text=True).split()
            built = [one for one in DEFAULT_ARCHS if f"compute_{one.replace('.', '')}" in known]
            archs = os.environ.get("TORCH_CUDA_ARCH_LIST") or ";".join(built) + "+PTX"
        ext.include_dirs.append(str(torch / "include"))
        ext.library_dirs.append(str(torch / "lib"))
        ext.define_macros.append(("CROSSALIGN_CUDA_ARCHS", f'"{archs}"'))
        ext.define_macros.append(("CROSSALIGN_BUILT_WITH", f'"{metadata.version("torch")}"'))
        if nvcc:
            self.compile_cuda(ext, [nvcc, *gencode_flags(archs)])
        super().build_extension(ext)

    def compile_cuda(self, ext, command):
        source = next(path for path in ext.depends if path.endswith(".cu"))
        target = Path(self.build_temp, "gather_negatives_cuda.o")
        target.parent.mkdir(parents=True, exist_ok=True)
        command += ["-O3", "-std=c++20", "-Xcompiler=-fPIC,-fvisibility=hidden", "-c", source]
        command += [f"-D{name}={value}" for name, value in ext.define_macros]
        command += [f"-I{folder}" for folder in ext.include_dirs]
        subprocess.run([*command, "-o", str(target)], check=True)
        # The runtime is linked in, so that the extension also loads where no CUDA is.
        plan = subprocess.run([*command, "--dryrun"], check=True, capture_output=True, text=True)
        ext.library_dirs += re.findall(r'"-L([^"]+)"', plan.stderr)
        ext.libraries += ["cudart_static", "rt", "pthread", "dl"]
        ext.extra_objects.append(str(target))


class BuildWheel(bdist_wheel):
    """Names the wheel after what is in it: cp311-abi3 with the extension, py3-none-any without."""

    def finalize_options(self):
        self.py_limited_api = "cp311"
        if self.distribution.ext_modules and (reason := what_is_missing()):
            go_without(reason)
            self.distribution.ext_modules = []
        super().finalize_options()
