"""Peak resident memory of one call on Linux, from the kernel's own high-water mark."""

from __future__ import annotations

import ctypes
import gc
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

RESET = Path("/proc/self/clear_refs")


def peak_resident_mib(prepare: Callable[[], None], call: Callable[[], Any]) -> float | None:
    """Peak of call() above what is held before prepare(); None where Linux's /proc is missing."""
    if not os.access(RESET, os.W_OK):
        return None
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # or memory freed earlier would count as held
    held = _status_mib("VmRSS")
    prepare()
    RESET.write_text("5")  # 5: start the high-water mark anew
    result = call()
    peak = _status_mib("VmHWM")
    del result
    return peak - held


def _status_mib(field: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"/proc/self/status has no {field}")
