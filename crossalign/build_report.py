"""What this installation can do: versions, backends, and why one cannot run here."""

from __future__ import annotations

import os
import platform
from typing import Any

import torch

from crossalign.backends import OLDEST_CAPABILITY, is_too_old
from crossalign.distributed.gather import extension_status, load_extension
from crossalign.version import __version__


def extension_available() -> bool:
    """Whether the compiled extension of gather_negatives is built and loads.

    Examples:
        >>> extension_available() in (True, False)
        True
    """
    return load_extension() is not None


def build_info() -> dict[str, Any]:
    """Versions and what can run here, in plain values that JSON can hold.

    Returns:
        version: of crossalign.
        python, platform, torch: what it runs on.
        triton: its version, or None.
        extension: whether the compiled extension loads.
        cuda_archs: the GPU architectures the extension was compiled for, "" for none.
        gpus: the names of the GPUs that PyTorch sees.
        backends: what `backend=` may be here, besides "auto".
        notes: a sentence on each backend and on the extension.

    Examples:
        >>> sorted(build_info())[-2:]
        ['triton', 'version']
    """
    triton = _triton_version()
    triton_runs, triton_note = _triton_status(triton)
    extension = load_extension()
    return {
        "version": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "torch": torch.__version__,
        "triton": triton,
        "extension": extension is not None,
        "cuda_archs": "" if extension is None else extension.cuda_archs,
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "backends": ["torch", "triton"] if triton_runs else ["torch"],
        "notes": {
            "torch": "runs everywhere; what auto takes for CPU tensors and for float64",
            "triton": triton_note,
            "extension": extension_status(),
        },
    }


def _triton_version() -> str | None:
    try:
        import triton
    except ImportError:
        return None
    return str(triton.__version__)


def _triton_status(version: str | None) -> tuple[bool, str]:
    """(whether backend="triton" runs for some tensor here, a sentence on it)."""
    if version is None:
        return False, "not installed; pip install 'crossalign[triton]' brings it on Linux"
    if torch.cuda.is_available():
        if all(map(is_too_old, range(torch.cuda.device_count()))):
            return False, f"needs compute capability {OLDEST_CAPABILITY}.0; auto takes torch"
        return True, "compiled kernels; what auto takes for CUDA tensors but float64"
    if os.environ.get("TRITON_INTERPRET") == "1":
        return True, "interpreted on the CPU (TRITON_INTERPRET=1): slow, for tests"
    return False, "PyTorch sees no GPU; auto takes torch"
