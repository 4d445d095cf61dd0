"""The shipped configurations of the pooling kernels."""

from __future__ import annotations

import torch
import triton.language as tl

from benchmarks.kernels.compile_case import CompileCase, compile_case
from crossalign.kernels.launch import accumulator_dtype
from crossalign.kernels.masked_mean_pool import (
    ROW_WARPS,
    TYPE_NAMES,
    _mean_pool_finish_kernel,
    _mean_pool_fwd_kernel,
    row_block,
    tile_for,
)
from crossalign.kernels.masked_mean_pool_backward import (
    _mean_pool_bwd_kernel,
    _mean_pool_bwd_rows_kernel,
)


def pooling_cases() -> list[CompileCase]:
    """Forward and backward."""
    return [*_forward_cases(), *_backward_cases()]


def _forward_cases() -> list[CompileCase]:
    """Every tile, padded; packed, split, narrow and finishing launches for bfloat16."""
    cases = [_fwd_case(dtype, 4096, is_packed=False) for dtype in TYPE_NAMES]
    cases.append(_fwd_case(torch.bfloat16, 64, is_packed=False))
    cases.append(_fwd_case(torch.bfloat16, 4096, is_packed=True))
    types = dict.fromkeys(("sums_ptr", "weights_ptr", "unit_ptr", "scale_ptr"), "*fp32")
    types["pooled_ptr"] = "*bf16"
    constexprs = {"NORMALIZE": True, "BLOCK_C": row_block(4096), "ACC_DTYPE": tl.float32}
    name = "mean_pool_finish_bf16_4096"
    return [*cases, compile_case(name, _mean_pool_finish_kernel, constexprs, types, ROW_WARPS)]


def _fwd_case(dtype: torch.dtype, width: int, *, is_packed: bool) -> CompileCase:
    """Padded and whole, or packed and split."""
    tile = tile_for(width, dtype, capability=80)
    short, acc = TYPE_NAMES[dtype]
    types = {"hidden_ptr": f"*{short}", "weights_ptr": f"*{acc}", "stride_hb": "i64"}
    types |= {"sums_ptr": f"*{acc if is_packed else short}", "stride_mb": "i64"}
    types |= {"cu_seqlens_ptr": "*i32"} if is_packed else {"mask_ptr": "*i64"}
    constexprs = {
        "mask_ptr" if is_packed else "cu_seqlens_ptr": None, "stride_hc": 1, "stride_mt": 1,
        "HAS_MASK": not is_packed, "IS_WHOLE": not is_packed,
        "BLOCK_T": tile.block_t, "BLOCK_C": tile.block_c, "ACC_DTYPE": accumulator_dtype(dtype),
    }  # fmt: skip
    name = f"mean_pool_fwd_{'packed' if is_packed else 'padded'}_{short}_{width}"
    return compile_case(name, _mean_pool_fwd_kernel, constexprs, types, tile.num_warps)


def _backward_cases() -> list[CompileCase]:
    """Every tile, padded; packed, narrow and unit-length launches for bfloat16."""
    cases = [_bwd_case(dtype, 4096, is_packed=False) for dtype in TYPE_NAMES]
    cases.append(_bwd_case(torch.bfloat16, 64, is_packed=False))
    cases.append(_bwd_case(torch.bfloat16, 4096, is_packed=True))
    types = {"grad_pooled_ptr": "*bf16", "unit_ptr": "*fp32", "rows_ptr": "*fp32"}
    constexprs = {"BLOCK_C": row_block(4096), "ACC_DTYPE": tl.float32}
    rows = compile_case(
        "mean_pool_bwd_rows_bf16_4096", _mean_pool_bwd_rows_kernel, constexprs, types, ROW_WARPS
    )
    return [*cases, rows]


def _bwd_case(dtype: torch.dtype, width: int, *, is_packed: bool) -> CompileCase:
    tile = tile_for(width, dtype, capability=80)
    short, acc = TYPE_NAMES[dtype]
    types = {"rows_ptr": f"*{short}", "scale_ptr": f"*{acc}", "grad_hidden_ptr": f"*{short}"}
    types |= {"stride_mb": "i64"}
    types |= {"cu_seqlens_ptr": "*i32"} if is_packed else {"mask_ptr": "*i64"}
    constexprs = {
        "mask_ptr" if is_packed else "cu_seqlens_ptr": None, "stride_mt": 1,
        "HAS_MASK": not is_packed,
        "BLOCK_T": tile.block_t, "BLOCK_C": tile.block_c, "ACC_DTYPE": accumulator_dtype(dtype),
    }  # fmt: skip
    name = f"mean_pool_bwd_{'packed' if is_packed else 'padded'}_{short}_{width}"
    return compile_case(name, _mean_pool_bwd_kernel, constexprs, types, tile.num_warps)
