"""Where a number comes from: commit, machine, versions and clocks, stored in every result row."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def provenance(device: torch.device) -> dict[str, Any]:
    commit, dirty = commit_state()
    record: dict[str, Any] = {
        "commit": commit,
        "dirty": dirty,
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "device": device_name(device),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": _version("triton"),
        "cuda": torch.version.cuda,
        # The older switch may not be asked once the newer one has been used; this follows both.
        "float32_cuda_precision": torch.backends.cuda.matmul.fp32_precision,
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        record |= {
            "driver": _nvidia_smi("driver_version")[0],
            "memory_gib": round(properties.total_memory / 2**30, 1),
            "multiprocessors": properties.multi_processor_count,
        }
    else:
        record["threads"] = torch.get_num_threads()
    return record


def commit_state() -> tuple[str, bool | None]:
    """(commit, whether files other than results differ from it).

    Where a copy of the tree without its history is measured, BENCHMARK_COMMIT names the commit,
    followed by "-dirty" if the tree differed from it.
    """
    named = os.environ.get("BENCHMARK_COMMIT")
    if named:
        return named.removesuffix("-dirty"), named.endswith("-dirty")
    try:
        commit = _output("git", "-C", str(ROOT), "rev-parse", "--short=12", "HEAD")
        changes = _output(
            "git", "-C", str(ROOT), "status", "--porcelain", "--", ":(exclude)benchmarks/results"
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown", None
    return commit, bool(changes)


def clock_state(device: torch.device) -> dict[str, float]:
    """Clocks right after a measurement, in MHz, and temperature, where the driver tells them."""
    if device.type != "cuda" or shutil.which("nvidia-smi") is None:
        return {}
    values = _nvidia_smi("clocks.sm,clocks.mem,temperature.gpu")
    names = ("sm_clock_mhz", "memory_clock_mhz", "temperature_celsius")
    return {
        name: float(value)
        for name, value in zip(names, values, strict=False)
        if value.replace(".", "").isdigit()
    }


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        names = re.findall(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        names = []
    return names[0] if names else platform.machine()


def result_path(subject: str, run: dict[str, Any]) -> Path:
    """<subject>_<device>_<date>_<commit>.jsonl in $OUT, or in benchmarks/results/."""
    folder = Path(os.environ.get("OUT") or RESULTS)
    device = re.sub(r"[^a-z0-9]+", "-", run["device"].lower()).strip("-")
    date = re.sub(r"[-:]", "", run["date"])
    return folder / f"{subject}_{device}_{date}_{run['commit']}.jsonl"


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _nvidia_smi(fields: str) -> list[str]:
    if shutil.which("nvidia-smi") is None:
        return ["unknown"]
    text = _output("nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits")
    return [value.strip() for value in text.splitlines()[0].split(",")]


def _output(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
