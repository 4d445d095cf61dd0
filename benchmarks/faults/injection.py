"""Commands in forked processes, in which a chosen call that changes a file fails or is the last."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

LIBRARY_SOURCE = Path(__file__).with_name("failing_calls.c")
PRELOADED = "CROSSALIGN_FAULTS_LIBRARY"


class Done(NamedTuple):
    """status: of the command, or minus the signal that ended it."""

    status: int
    output: str
    error: str
    calls: int  # that changed files below the folder


def restart_with_library(folder: Path) -> None:
    """Starts this very command again with the library, unless it has it."""
    if PRELOADED in os.environ:
        return
    library = folder / "failing_calls.so"
    command = ["cc", "-shared", "-fPIC", "-O1", "-o", str(library), str(LIBRARY_SOURCE), "-ldl"]
    subprocess.run(command, check=True)
    environment = {"LD_PRELOAD": str(library), PRELOADED: str(library), "OMP_NUM_THREADS": "1"}
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **environment})


def import_what_commands_need() -> None:
    """So that the processes forked from this one need not."""
    import accelerate  # noqa: F401
    import numpy  # noqa: F401
    import peft  # noqa: F401
    import safetensors.torch  # noqa: F401
    import transformers.models.gpt2.modeling_gpt2  # noqa: F401
    import yaml  # noqa: F401

    import crossalign.alignment.run_directory
    import crossalign.cli.main  # noqa: F401


def call(
    arguments: Sequence[object],
    folder: Path,
    scratch: Path,
    *,
    at: int = 0,
    kills: bool = False,
    kill_after_s: float | None = None,
) -> Done:
    """A command of crossalign.

    Args:
        arguments: without the program's name.
        folder: whose files count.
        scratch: where its output goes.
        at: the call, from 1, from which on the disk is full, or with `kills` at which the process
            is killed; 0 = none.
        kill_after_s: when it is killed from outside; None = not at all.
    """
    paths = [scratch / name for name in ("out.txt", "error.txt", "calls.txt")]
    for path in paths:
        path.write_text("")
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        _run(arguments, folder, paths, at, kills)
    if kill_after_s is not None:
        time.sleep(kill_after_s)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    out, error, calls = (path.read_text() for path in paths)
    return Done(os.waitstatus_to_exitcode(status), out, error, int(calls or 0))


def _run(
    arguments: Sequence[object], folder: Path, paths: Sequence[Path], at: int, kills: bool
) -> None:
    status = 70
    try:
        from crossalign.cli.main import main

        for path, descriptor in zip(paths, (1, 2), strict=False):
            os.dup2(os.open(path, os.O_WRONLY), descriptor)
        library = ctypes.CDLL(os.environ[PRELOADED])
        library.faults_arm(str(folder).encode(), ctypes.c_long(at), int(kills))
        try:
            status = main([str(each) for each in arguments])
        except SystemExit as stop:
            status = int(stop.code or 0)
        calls = library.faults_counted()
        library.faults_arm(b"", ctypes.c_long(0), 0)
        paths[2].write_text(str(calls))
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(status)
