"""Whether the processes of the other ranks of one machine are still there."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

LONGEST_WAIT_S = 300.0  # longer than any honest delay: compilation, a checkpoint, slow storage


def process_record() -> dict[str, object]:
    """What peers need to look for this process: its number, its start and its number space."""
    namespace = Path("/proc/self/ns/pid")
    pid = os.getpid()
    if not namespace.exists() or (started := _start_of(pid)) is None:
        return {}
    return {"pid": pid, "started": started, "pid namespace": str(namespace.readlink())}


def dead_rank(records: Sequence[dict[str, Any]], rank: int) -> int | None:
    """The first rank whose process has ended, of those that this rank can look for.

    records: process_record() of every rank. A number that another process has by now has another
    start; a process that only waits to be reaped has ended.
    """
    mine = records[rank].get("pid namespace")
    for peer, record in enumerate(records):
        is_visible = mine is not None and record.get("pid namespace") == mine
        if is_visible and peer != rank and _start_of(record["pid"]) != record["started"]:
            return peer
    return None


def longest_wait(group: dist.ProcessGroup, device: torch.device) -> float:
    """Seconds after which a rank of the group counts as missing: the group's timeout, but no more
    than LONGEST_WAIT_S."""
    options = getattr(group._get_backend(device), "options", None)
    timeout = getattr(options, "_timeout", None)
    seconds = timeout.total_seconds() if isinstance(timeout, timedelta) else LONGEST_WAIT_S
    return min(seconds, LONGEST_WAIT_S) if seconds > 0 else LONGEST_WAIT_S


def _start_of(pid: int) -> int | None:
    """Clock ticks since boot at which a process began; None if it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    state, start = fields[0], fields[19]  # fields 3 and 22 of proc(5)
    return None if state in "ZX" else int(start)
