"""One process of `crossalign check`: runs the checks it is told to, one line of JSON for each.

python -m crossalign.check.worker BACKEND DEVICE SIZE [NAME ...]
"""

from __future__ import annotations

import json
import math
import sys
import time
import traceback
from collections.abc import Callable

import torch

from crossalign.check.catalog import catalog
from crossalign.check.finding import Finding, Place
from crossalign.check.speed import measure_speed


def run_check(name: str, check: Callable[[], Finding]) -> dict[str, object]:
    """What a check found, as plain values; an exception is a finding too."""
    torch.manual_seed(0)
    start = time.perf_counter()
    try:
        finding = check()
        is_right = finding.error <= finding.limit
        # JSON knows no infinity.
        error = finding.error if math.isfinite(finding.error) else str(finding.error)
        found: dict[str, object] = {
            "ok": is_right,
            "error": error,
            "limit": finding.limit,
            "where": finding.where,
        }
    except Exception as error:
        found = {"ok": False, "detail": f"{type(error).__name__}: {error}"}
        found["traceback"] = traceback.format_exc(limit=-6)
    return {"name": name, **found, "seconds": round(time.perf_counter() - start, 2)}


def main(argv: list[str]) -> None:
    backend, device, size, *names = argv
    place = Place("triton" if backend == "triton" else "torch", device, size == "small")
    if names == ["speed"]:
        print(json.dumps(measure_speed(device)), flush=True)
        return
    checks = catalog(place)
    for name in names:
        result = run_check(name, lambda check=checks[name]: check(place))  # type: ignore[misc]
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
