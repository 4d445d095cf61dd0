"""Builds crossalign._gather_negatives: C++ always, CUDA where nvcc is, whether or not a GPU is.

Without a compiler or PyTorch, the package is installed as pure Python, and one line says so.
CROSSALIGN_BUILD_EXTENSION=1 makes that an error, =0 skips the build; TORCH_CUDA_ARCH_LIST overrides
the architectures. Ninja compiles where it is found. Nothing is fetched.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from importlib import metadata
from pathlib import Path

from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.errors import BaseError, CCompilerError

SWITCH = "CROSSALIGN_BUILD_EXTENSION"
DEFAULT_ARCHS = ("8.0", "9.0", "10.0")  # those that nvcc knows, and portable code for the last


def find_torch() -> tuple[Path, str] | None:
    """PyTorch's folder and version, of the build environment or of the one installed into.

    pip hides the latter from an isolated build, but its interpreter still knows the path.
    """
    installed = [sysconfig.get_path(name) for name in ("purelib", "platlib")]
    for found in metadata.distributions(name="torch", path=[*sys.path, *installed]):
        folder = Path(found.locate_file("torch"))
        if (folder / "include").is_dir():
            return folder, found.version
    return None


def what_is_missing() -> str:
    """Why the extension cannot be built here; empty if it can."""
    compiler = os.environ.get("CXX") or sysconfig.get_config_var("CXX") or "c++"
    if os.environ.get(SWITCH) == "0":
        return f"{SWITCH}=0"
    if (torch := find_torch()) is None:
        return "no PyTorch here; install it first, then crossalign"
    if [int(part) for part in torch[1].split(".")[:2]] < [2, 11]:
        return f"the stable ABI needs PyTorch 2.11 or newer, got {torch[1]}"
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
        torch, version = find_torch()
        archs = ""
        if nvcc:
            known = subprocess.check_output([nvcc, "--list-gpu-arch"], text=True).split()
            built = [one for one in DEFAULT_ARCHS if f"compute_{one.replace('.', '')}" in known]
            archs = os.environ.get("TORCH_CUDA_ARCH_LIST") or ";".join(built) + "+PTX"
        # Before 82, setuptools passes on the lists of pyproject.toml where its compilers insist on
        # tuples; PyTorch 2.11 asks for a setuptools below 82.
        ext.define_macros = [tuple(macro) for macro in ext.define_macros]
        ext.include_dirs.append(str(torch / "include"))
        ext.library_dirs.append(str(torch / "lib"))
        ext.define_macros.append(("CROSSALIGN_CUDA_ARCHS", f'"{archs}"'))
        ext.define_macros.append(("CROSSALIGN_BUILT_WITH", f'"{version}"'))
        folders = [*ext.include_dirs, *self.include_dirs]
        shared = [f"-D{name}={value}" for name, value in ext.define_macros]
        shared += [f"-I{folder}" for folder in folders]
        commands = {}
        for source in ext.sources:
            command = [*self.compiler.compiler_so_cxx, *ext.extra_compile_args, *shared]
            commands[source] = [*command, "-c", source]
        if nvcc:
            source = next(path for path in ext.depends if path.endswith(".cu"))
            command = [nvcc, *gencode_flags(archs), "-O3", "-std=c++20"]
            command += ["-Xcompiler=-fPIC,-fvisibility=hidden", *shared]
            commands[source] = [*command, "-c", source]
            # The runtime is linked in, so that the extension also loads where no CUDA is.
            dry_run = [*commands[source], "--dryrun"]
            plan = subprocess.run(dry_run, check=True, capture_output=True, text=True).stderr
            ext.library_dirs += re.findall(r'"-L([^"]+)"', plan)
            ext.libraries += ["cudart_static", "rt", "pthread", "dl"]
        ext.extra_objects += compile_objects(commands, Path(self.build_temp).absolute())
        ext.sources = []  # what is left to do is to link
        super().build_extension(ext)


def compile_objects(commands, folder):
    """Runs the compilers, side by side where ninja is; source -> command without its output."""
    folder.mkdir(parents=True, exist_ok=True)
    objects = {source: folder / f"{Path(source).name}.o" for source in commands}
    full = {source: [*commands[source], "-o", str(objects[source])] for source in commands}
    if ninja := shutil.which("ninja"):
        # Its log goes there too, not beside the sources.
        lines = [f"builddir = {str(folder).replace(' ', '$ ')}"]
        lines += ["rule compile", "  command = $command", "  description = compile $in"]
        for source, command in full.items():
            escaped = [str(path).replace(" ", "$ ") for path in (objects[source], source)]
            lines += [f"build {escaped[0]}: compile {escaped[1]}"]
            lines += [f"  command = {shlex.join(command).replace('$', '$$')}"]
        (folder / "build.ninja").write_text("\n".join(lines) + "\n")
        subprocess.run([ninja, "-f", str(folder / "build.ninja")], check=True)
    else:
        for command in full.values():
            subprocess.run(command, check=True)
    return [str(path) for path in objects.values()]


class BuildWheel(bdist_wheel):
    """Names the wheel after what is in it: cp311-abi3 with the extension, py3-none-any without."""

    def finalize_options(self):
        self.py_limited_api = "cp311"
        if self.distribution.ext_modules and (reason := what_is_missing()):
            go_without(reason)
            self.distribution.ext_modules = []
        super().finalize_options()

    def run(self):
        # What an earlier build left there would be packed again, modules removed since among it.
        library = self.get_finalized_command("build").build_lib
        shutil.rmtree(library, ignore_errors=True)
        super().run()
