"""A real browser without a window, spoken to through its DevTools pipe; standard library alone."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
_PATIENCE = 60.0  # seconds


class Browser:
    """One page. problems: what the page wrote to the console or failed to load."""

    def __init__(self, requests: int, replies: int) -> None:
        self._requests, self._replies = requests, replies
        self._buffer = b""
        self._number = 0
        self._session: str | None = None
        self._events: list[str] = []
        self.problems: list[str] = []
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        attached = self._call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._call(f"{domain}.enable")

    def open(self, path: Path, *, width: int, height: int = 900, scheme: str = "light") -> None:
        """Loads a file in a window of `width` CSS pixels, and waits until it is all there."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self._call("Emulation.setEmulatedMedia", features=features)
        self._call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        self._events.clear()
        self._call("Page.navigate", url=path.resolve().as_uri())
        end = time.monotonic() + _PATIENCE
        while "Page.loadEventFired" not in self._events:
            self._take(self._read(end))

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression on the page."""
        answer = self._call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def screenshot(self, path: Path | None = None) -> bytes:
        """A PNG of the whole page, kept in a file if one is named."""
        answer = self._call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        png = base64.b64decode(answer["data"])
        if path is not None:
            path.write_bytes(png)
        return png

    def pdf(self) -> bytes:
        """The page as printed."""
        return base64.b64decode(self._call("Page.printToPDF", preferCSSPageSize=True)["data"])

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._requests, json.dumps(message).encode() + b"\0")
        end = time.monotonic() + _PATIENCE
        while True:
            reply = self._read(end)
            if reply.get("id") == self._number:
                assert "error" not in reply, (method, reply["error"])
                result: dict[str, Any] = reply["result"]
                return result
            self._take(reply)

    def _take(self, event: dict[str, Any]) -> None:
        method, content = event.get("method", ""), event.get("params", {})
        self._events.append(method)
        if method == "Log.entryAdded":
            self.problems.append(str(content["entry"]["text"]))
        elif method in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown"):
            self.problems.append(json.dumps(content))
        elif method == "Network.requestWillBeSent":
            url = content["request"]["url"]
            if not url.startswith(("file:", "data:", "about:")):
                self.problems.append(f"asked the network for {url}")

    def _read(self, end: float) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._replies], [], [], max(0, end - time.monotonic()))
            assert ready, "the browser does not answer"
            part = os.read(self._replies, 2**20)
            assert part, "the browser ended"
            self._buffer += part
        head, _, self._buffer = self._buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(head)
        return message


@contextlib.contextmanager
def headless_browser(profile: Path) -> Iterator[Browser]:
    """Starts a browser with an empty profile in a directory; skips where none is installed."""
    command = next(filter(None, map(shutil.which, _NAMES)), None)
    if command is None:
        pytest.skip(f"no browser: none of {', '.join(_NAMES)} is installed")
    to_read, requests = os.pipe()
    replies, to_write = os.pipe()
    # The browser reads requests from descriptor 3 and writes replies to 4.
    redirect = f'exec "$@" 3<&{to_read} 4>&{to_write}'
    flags = (
        *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
        "--hide-scrollbars",
        *("--remote-debugging-pipe", "--no-first-run", f"--user-data-dir={profile}"),
    )
    process = subprocess.Popen(
        ["bash", "-c", redirect, "browser", command, *flags],
        pass_fds=(to_read, to_write),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(to_read)
    os.close(to_write)
    try:
        yield Browser(requests, replies)
    finally:
        os.close(requests)  # the end of its pipe ends the browser
        os.close(replies)
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
