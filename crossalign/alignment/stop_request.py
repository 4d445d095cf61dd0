"""SIGTERM and SIGINT: a run ends in order, whether it trains already or still loads."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

_Handler = Callable[[int, FrameType | None], Any]


@contextlib.contextmanager
def stop_request() -> Iterator[threading.Event]:
    """An event that the first SIGINT or SIGTERM sets; the second one does what it did before."""
    stop = threading.Event()

    def request(number: int, frame: FrameType | None) -> None:
        stop.set()
        restore()

    with _handled(request, signal.SIGINT, signal.SIGTERM) as restore:
        yield stop


@contextlib.contextmanager
def exit_on_sigterm(told: str = "stopped by SIGTERM") -> Iterator[None]:
    """SIGTERM raises SystemExit, so that what is open is closed and what is temporary removed."""

    def leave(number: int, frame: FrameType | None) -> None:
        print(f"crossalign: {told}", file=sys.stderr)
        raise SystemExit(128 + number)

    with _handled(leave, signal.SIGTERM):
        yield


@contextlib.contextmanager
def _handled(handler: _Handler, *numbers: signal.Signals) -> Iterator[Callable[[], None]]:
    """The handler in place; gives what puts the earlier ones back, as the end does."""
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None  # only the main thread may set handlers
        return
    earlier = {number: signal.getsignal(number) for number in numbers}

    def restore() -> None:
        for number, before in earlier.items():
            signal.signal(number, before)

    for number in numbers:
        signal.signal(number, handler)
    try:
        yield restore
    finally:
        restore()
