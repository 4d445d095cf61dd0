"""Which backend runs which tensors, and why Triton cannot run some of them.

The kernels ask this module whether they are interpreted; it knows nothing of them.
"""

from __future__ import annotations

import importlib.util
from typing import Literal, get_args

import torch
from torch import Tensor

from crossalign.argument_checks import check_option

Backend = Literal["auto", "triton", "torch"]  # what a caller may ask for
OLDEST_CAPABILITY = 8
# Looked up once: it costs 30 us, and torch.compile of PyTorch 2.11 cannot trace the look.
HAS_TRITON = importlib.util.find_spec("triton") is not None
_triton_interprets: bool | None = None


def triton_interprets() -> bool:
    """Whether Triton's interpreter runs the kernels (TRITON_INTERPRET=1).

    Asked once, since Triton decides it for good when a kernel is defined.
    """
    global _triton_interprets
    if _triton_interprets is None:
        import triton

        _triton_interprets = bool(triton.knobs.runtime.interpret)
    return _triton_interprets


def choose_backend(function: str, backend: str, tensor: Tensor) -> str:
    """ "auto" -> "triton" on a GPU that runs it (but for float64), else "torch"; a name must fit.

    Raises:
        ValueError: backend is unknown, or is "triton" where Triton cannot run this tensor.
    """
    check_option(function, "backend", backend, get_args(Backend))
    if backend == "torch":
        return "torch"
    if backend == "auto":
        on_gpu = tensor.device.type == "cuda" and tensor.dtype != torch.float64
        return "triton" if on_gpu and not _why_triton_cannot_run(tensor) else "torch"
    if reason := _why_triton_cannot_run(tensor):
        raise ValueError(f'{function}: backend="triton" cannot run here: {reason}')
    return "triton"


def is_too_old(device: torch.device | int) -> bool:
    """Whether a GPU lacks the compute capability that the kernels, and Triton, are made for."""
    return bool(torch.cuda.get_device_properties(device).major < OLDEST_CAPABILITY)


def _why_triton_cannot_run(tensor: Tensor) -> str:
    if not HAS_TRITON:
        return (
            'the triton package is not installed; use backend="torch" or install crossalign[triton]'
        )
    if tensor.device.type == "cuda" and is_too_old(tensor.device):
        return (
            f"the GPU's compute capability is below {OLDEST_CAPABILITY}.0, which the kernels need; "
            'use backend="torch"'
        )
    if tensor.device.type == "cuda":
        return ""
    if tensor.device.type != "cpu":
        return f'device {tensor.device} is not supported; use backend="torch"'
    if triton_interprets():
        return ""
    return (
        'the tensors are on the CPU; use backend="torch", or set TRITON_INTERPRET=1 before the '
        "first call to run the kernels in Triton's interpreter (slow, for tests)"
    )
