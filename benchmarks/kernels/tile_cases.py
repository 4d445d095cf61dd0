"""The shipped configurations of the tile kernels: every option that changes what is compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import triton.language as tl

from benchmarks.kernels.compile_case import CompileCase, compile_case
from crossalign.kernels.contrastive_forward import _contrastive_fwd_kernel
from crossalign.kernels.contrastive_gradient import _contrastive_bwd_kernel
from crossalign.kernels.operands import TRITON_DTYPES
from crossalign.kernels.positive_logits import _positive_logits_kernel
from crossalign.kernels.sigmoid_forward import _sigmoid_fwd_kernel
from crossalign.kernels.sigmoid_gradient import _sigmoid_bwd_kernel
from crossalign.kernels.tiles import TILES, Tiles, TileTable

# All options in bfloat16; the plainest and the heaviest in the other dtypes.
_DTYPE_OPTIONS = {
    "bf16": (
        *("symmetric", "one_way", "online", "temperature", "ids_stats", "owners"),
        *("private", "positives", "kept", "kept_one_way", "kept_owners", "everything"),
        *("plain", "ids"),
    ),
    "fp16": ("symmetric", "everything", "plain"),
    "fp32": ("symmetric", "tf32", "kept", "everything", "plain"),
    "fp64": ("symmetric", "everything"),
}
_DTYPES_OF_SIZE = {2: ("bf16", "fp16"), 4: ("fp32",), 8: ("fp64",)}
FORWARD_OPTIONS: dict[str, dict[str, object]] = {
    "symmetric": {},
    "one_way": {"SYMMETRIC": False},
    "online": {"IS_BOUNDED": False},
    "ids_stats": {"HAS_IDS": True, "WITH_STATS": True},
    "owners": {"HAS_IDS": True, "HAS_OWNERS": True, "WITH_STATS": True},
    "private": {"HAS_OWNERS": True, "SHARE_NEGATIVES": False},
    "positives": {"HAS_IDS": True, "MULTI_POSITIVE": True},
    "kept": {"KEPT": True},
    "kept_one_way": {"KEPT": True, "SYMMETRIC": False},
    "kept_owners": {"KEPT": True, "HAS_IDS": True, "HAS_OWNERS": True, "WITH_STATS": True},
    "tf32": {"PRECISION": "tf32"},
    "everything": {
        "HAS_IDS": True, "MULTI_POSITIVE": True, "HAS_OWNERS": True, "SHARE_NEGATIVES": False,
        "WITH_STATS": True, "IS_BOUNDED": False,
    },
}  # fmt: skip
BACKWARD_OPTIONS: dict[str, dict[str, object]] = {
    "symmetric": {},
    "one_way": {"SYMMETRIC": False},
    "owners": {"HAS_IDS": True, "HAS_OWNERS": True},
    "temperature": {"NEED_SCALE_GRAD": True},
    "online": {"IS_BOUNDED": False, "NEED_SCALE_GRAD": True},
    "positives": {"HAS_IDS": True, "MULTI_POSITIVE": True},
    "tf32": {"PRECISION": "tf32"},
    "everything": {
        "HAS_IDS": True, "MULTI_POSITIVE": True, "HAS_OWNERS": True, "SHARE_NEGATIVES": False,
        "IS_BOUNDED": False, "NEED_SCALE_GRAD": True,
    },
}  # fmt: skip
SIGMOID_OPTIONS: dict[str, dict[str, object]] = {
    "plain": {"NEED_SCALAR_GRADS": True},
    "ids": {"NEED_SCALAR_GRADS": True, "HAS_IDS": True},
    "tf32": {"NEED_SCALAR_GRADS": True, "PRECISION": "tf32"},
}


def tile_cases() -> list[CompileCase]:
    """The kernels that multiply tiles."""
    return [
        *_cases_of(_contrastive_fwd_kernel, "contrastive_fwd", FORWARD_OPTIONS, _forward_tiles),
        *_cases_of(_contrastive_bwd_kernel, "contrastive_bwd", BACKWARD_OPTIONS, _backward_tiles),
        *_cases_of(_positive_logits_kernel, "positive_logits", {"symmetric": {}}, _forward_tiles),
        *_cases_of(_sigmoid_fwd_kernel, "sigmoid_fwd", SIGMOID_OPTIONS, _sigmoid_forward_tiles),
        *_cases_of(_sigmoid_bwd_kernel, "sigmoid_bwd", SIGMOID_OPTIONS, _sigmoid_backward_tiles),
    ]


def _forward_tiles(table: TileTable, options: dict[str, object]) -> Tiles:
    return table.forward_masked if options.get("MULTI_POSITIVE") else table.forward


def _backward_tiles(table: TileTable, options: dict[str, object]) -> Tiles:
    is_masked = options.get("MULTI_POSITIVE") or not options.get("IS_BOUNDED", True)
    return table.backward_masked if is_masked else table.backward


def _sigmoid_forward_tiles(table: TileTable, options: dict[str, object]) -> Tiles:
    return table.forward_masked if options.get("HAS_IDS") else table.forward


def _sigmoid_backward_tiles(table: TileTable, options: dict[str, object]) -> Tiles:
    return table.backward_masked


def _cases_of(
    kernel: Any,
    prefix: str,
    options: dict[str, dict[str, object]],
    tiles_for: Callable[[TileTable, dict[str, object]], Tiles],
) -> list[CompileCase]:
    """options: constexprs by name, those of _DTYPE_OPTIONS that the kernel has; tiles_for: the
    tiles that these options run with."""
    cases = []
    for (arch, size), table in TILES.items():
        for dtype in _DTYPES_OF_SIZE[size]:
            for name in _DTYPE_OPTIONS[dtype]:
                if name in options:
                    case_name, tiles = f"{prefix}_{dtype}_{name}", tiles_for(table, options[name])
                    cases.append(_tile_case(kernel, case_name, arch, dtype, tiles, options[name]))
    return cases


def _tile_case(
    kernel: Any,
    name: str,
    arch: int,
    dtype: str,
    tiles: Tiles,
    options: dict[str, object],
) -> CompileCase:
    """A launch of `kernel` with these tiles and options, as the launcher would make it."""
    use_descriptors = arch >= 90
    blocks = {"query": (tiles.block_n, tiles.block_d), "candidates": (tiles.block_m, tiles.block_d)}
    blocks["gradient_out"] = blocks["kept"] = (tiles.block_n, tiles.block_m)
    constexprs: dict[str, object] = {
        "BLOCK_N": tiles.block_n, "BLOCK_M": tiles.block_m, "BLOCK_D": tiles.block_d,
        "ACC_DTYPE": tl.float32, "PRECISION": "ieee", "NORMALIZE": True,
        "USE_DESCRIPTORS": use_descriptors, "SYMMETRIC": True, "IS_BOUNDED": True,
        "HAS_IDS": False, "MULTI_POSITIVE": False, "HAS_OWNERS": False, "SHARE_NEGATIVES": True,
        "WITH_STATS": False, "NEED_SCALE_GRAD": False,
        "DTYPE": TRITON_DTYPES[dtype],
    } | options  # fmt: skip
    if not constexprs["HAS_IDS"]:
        constexprs |= {"query_ids_ptr": None, "candidate_ids_ptr": None}
    if not constexprs["HAS_OWNERS"]:
        constexprs["negative_owner_ptr"] = None
    if not constexprs["NEED_SCALE_GRAD"]:
        constexprs["scale_partial_ptr"] = None
    if dtype == "fp64":
        constexprs["ACC_DTYPE"] = tl.float64
    if not constexprs.pop("KEPT", False):
        constexprs["kept"] = None
    constexprs = {name: value for name, value in constexprs.items() if name in kernel.arg_names}
    types = dict.fromkeys(kernel.arg_names, "*fp64") if dtype == "fp64" else {}
    types = {name: kind for name, kind in types.items() if name.endswith("_ptr")}
    types |= {"hard_negative_weight": "fp32", "row_counts_ptr": "*i32"}
    types |= dict.fromkeys(("query_ids_ptr", "candidate_ids_ptr", "negative_owner_ptr"), "*i64")
    for argument, (rows, width) in blocks.items():
        matrix = f"tensordesc<{dtype}[{rows},{width}]>" if use_descriptors else f"*{dtype}"
        types[argument] = matrix
    return compile_case(name, kernel, constexprs, types, tiles.num_warps, tiles.num_stages, (arch,))
