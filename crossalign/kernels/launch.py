"""What every kernel launch needs: interpreter flag, device guard, accumulator, dot operands."""

from __future__ import annotations

import contextlib

import torch
import triton
import triton.language as tl
from torch import Tensor

from crossalign.backends import triton_interprets
from crossalign.precision import accumulator

INTERPRETED = triton_interprets()
_INTERPRETED = tl.constexpr(INTERPRETED)


@triton.jit
def dot_operand(tile):
    """An operand of tl.dot: unchanged on a GPU, float32 for 16-bit tiles under the interpreter.

    The interpreter multiplies the raw bit patterns of bfloat16 (triton-lang/triton#11584).
    """
    if _INTERPRETED and tile.dtype.primitive_bitwidth == 16:
        tile = tile.to(tl.float32)
    return tile


@triton.jit
def store_tile(out, tile, stride, first_row, first_column, USE_DESCRIPTORS: tl.constexpr):
    """Stores a tile of a workspace of whole tiles: no access needs a mask."""
    if USE_DESCRIPTORS:
        out.store([first_row, first_column], tile)
    else:
        base = out + first_row.to(tl.int64) * stride + first_column
        ptrs = base + tl.arange(0, tile.shape[0])[:, None] * stride + tl.arange(0, tile.shape[1])
        tl.store(ptrs, tile)


def accumulator_dtype(dtype: torch.dtype) -> tl.dtype:
    """float64 accumulates in float64, everything else in float32."""
    return tl.float64 if accumulator(dtype) == torch.float64 else tl.float32


def device_guard(tensor: Tensor) -> contextlib.AbstractContextManager[object]:
    """Makes the tensor's GPU the current one, so that a launch on a second GPU lands there.

    The interpreter computes with NumPy, which warns of an overflow or a NaN where a GPU is silent.
    """
    if tensor.is_cuda:
        return torch.cuda.device(tensor.device)
    if INTERPRETED:
        import numpy

        return numpy.errstate(all="ignore")
    return contextlib.nullcontext()


def compute_capability(tensor: Tensor) -> int:
    """10 * major + minor of the tensor's GPU; 0 on the CPU (interpreter)."""
    if not tensor.is_cuda:
        return 0
    major, minor = torch.cuda.get_device_capability(tensor.device)
    return 10 * major + minor
