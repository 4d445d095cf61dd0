"""The shipped configurations of the tile kernels: every option that changes what is compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import triton.language as tl

from benchmarks.kernels.compile_case import GPUS_OF_ENTRY, CompileCase, compile_case
from crossalign.kernels.contrastive_coefficients import GradientVectors
from crossalign.kernels.contrastive_forward import _contrastive_fwd_kernel
from crossalign.kernels.contrastive_gradient import _contrastive_bwd_kernel
from crossalign.kernels.contrastive_join import Partials
from crossalign.kernels.operands import TRITON_DTYPES, TileFlags, TileRules
from crossalign.kernels.positive_logits import _positive_logits_kernel
from crossalign.kernels.sigmoid_backward import SigmoidVectors, _sigmoid_bwd_kernel
from crossalign.kernels.sigmoid_forward import _sigmoid_fwd_kernel
from crossalign.kernels.tiles import TILES, Tiles, TileTable

# All options in bfloat16; the plainest and the heaviest in the other dtypes.
_DTYPE_OPTIONS = {
    "bf16": (
        *("symmetric", "one_way", "online", "temperature", "ids_stats", "owners"),
        *("private", "positives", "kept", "kept_one_way", "kept_owners", "everything"),
        *("plain", "ids", "margin", "margin_one_way", "logit_sums", "hardness", "best"),
        *("all_options", "all_rules", "learned_unshared"),
        *("guided", "guided_one_way", "guided_owners", "guided_all_options"),
    ),
    "fp16": ("symmetric", "everything", "plain"),
    "fp32": (
        *("symmetric", "tf32", "kept", "everything", "plain", "all_options"),
        *("guided", "guided_all_options"),
    ),
    "fp64": ("symmetric", "everything", "all_options", "guided_all_options"),
}
_DTYPES_OF_SIZE = {2: ("bf16", "fp16"), 4: ("fp32",), 8: ("fp64",)}
_GUIDED: dict[str, object] = {"HAS_LIMITS": True, "HAS_GUIDES": True}
_OWNERS: dict[str, object] = {"HAS_IDS": True, "HAS_OWNERS": True}
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
    "margin": {"HAS_LIMITS": True},
    "margin_one_way": {"HAS_LIMITS": True, "SYMMETRIC": False, "HAS_OWNERS": True},
    "logit_sums": {"WITH_LOGIT_SUMS": True},
    "hardness": {"HARDNESS_ON": "in_batch", "HAS_OWNERS": True, "SYMMETRIC": False},
    "best": {"HAS_IDS": True, "MULTI_POSITIVE": True, "WITH_BEST": True, "SYMMETRIC": False},
    "guided": _GUIDED,
    "guided_one_way": _GUIDED | _OWNERS | {"KEPT": True, "SYMMETRIC": False, "WITH_STATS": True},
    "guided_owners": _GUIDED | _OWNERS | {"WITH_STATS": True},
    "everything": {
        "HAS_IDS": True, "MULTI_POSITIVE": True, "HAS_OWNERS": True, "SHARE_NEGATIVES": False,
        "WITH_STATS": True, "IS_BOUNDED": False,
    },
    "all_options": {
        "HAS_IDS": True, "MULTI_POSITIVE": True, "HAS_OWNERS": True, "SHARE_NEGATIVES": False,
        "WITH_STATS": True, "IS_BOUNDED": False, "HAS_LIMITS": True, "WITH_LOGIT_SUMS": True,
        "HARDNESS_ON": "owned",
    },
}  # fmt: skip
# Other hardness: with it LLVM once aborted on sm_80, which no configuration here had shown.
FORWARD_OPTIONS["all_rules"] = FORWARD_OPTIONS["all_options"] | {"HARDNESS_ON": "all"}
FORWARD_OPTIONS["guided_all_options"] = FORWARD_OPTIONS["all_options"] | _GUIDED
BACKWARD_OPTIONS: dict[str, dict[str, object]] = {
    "symmetric": {},
    "one_way": {"SYMMETRIC": False},
    "owners": {"HAS_IDS": True, "HAS_OWNERS": True},
    "temperature": {"NEED_SCALE_GRAD": True},
    "online": {"IS_BOUNDED": False, "NEED_SCALE_GRAD": True},
    "positives": {"HAS_IDS": True, "MULTI_POSITIVE": True},
    "tf32": {"PRECISION": "tf32"},
    "margin": {"HAS_LIMITS": True},
    "margin_one_way": {"HAS_LIMITS": True, "SYMMETRIC": False, "HAS_OWNERS": True},
    "logit_sums": {"WITH_LOGIT_SUMS": True},
    "hardness": {"HARDNESS_ON": "in_batch", "HAS_OWNERS": True, "SYMMETRIC": False},
    "guided": _GUIDED,
    "guided_one_way": _GUIDED | {"SYMMETRIC": False},
    "guided_owners": _GUIDED | _OWNERS,
    "learned_unshared": {
        "HAS_OWNERS": True, "SHARE_NEGATIVES": False, "IS_BOUNDED": False, "NEED_SCALE_GRAD": True,
    },
    "everything": {
        "HAS_IDS": True, "MULTI_POSITIVE": True, "HAS_OWNERS": True, "SHARE_NEGATIVES": False,
        "IS_BOUNDED": False, "NEED_SCALE_GRAD": True,
    },
    "all_options": {
        "HAS_IDS": True, "MULTI_POSITIVE": True, "HAS_OWNERS": True, "SHARE_NEGATIVES": False,
        "IS_BOUNDED": False, "NEED_SCALE_GRAD": True, "HAS_LIMITS": True, "WITH_LOGIT_SUMS": True,
        "HARDNESS_ON": "owned",
    },
}  # fmt: skip
BACKWARD_OPTIONS["all_rules"] = BACKWARD_OPTIONS["all_options"] | {"HARDNESS_ON": "all"}
BACKWARD_OPTIONS["guided_all_options"] = BACKWARD_OPTIONS["all_options"] | _GUIDED
SIGMOID_OPTIONS: dict[str, dict[str, object]] = {
    "plain": {"NEED_SCALE_GRAD": True},
    "ids": {"NEED_SCALE_GRAD": True, "HAS_IDS": True},
    "tf32": {"NEED_SCALE_GRAD": True, "PRECISION": "tf32"},
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
    needs = _register_needs(options)
    if needs == "ruled":
        return table.forward_ruled
    is_masked = needs == "masked" or options.get("MULTI_POSITIVE")
    return table.forward_masked if is_masked else table.forward


def _backward_tiles(table: TileTable, options: dict[str, object]) -> Tiles:
    needs = _register_needs(options)
    if needs == "ruled" or options.get("HAS_GUIDES"):
        return table.backward_ruled
    is_masked = needs or options.get("MULTI_POSITIVE") or not options.get("IS_BOUNDED", True)
    return table.backward_masked if is_masked else table.backward


def _register_needs(options: dict[str, object]) -> str:
    """As the launchers tell by the problem."""
    rules = [name for name in ("HAS_LIMITS", "WITH_LOGIT_SUMS", "HARDNESS_ON") if name in options]
    is_online = not options.get("IS_BOUNDED", True)
    is_heavy = len(rules) > 1 or options.get("MULTI_POSITIVE") or is_online
    return "" if not rules else "ruled" if is_heavy else "masked"


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
    use_descriptors, chosen = arch >= 90, dict[str, Any](options)
    is_kept, is_guided = chosen.pop("KEPT", False), chosen.pop("HAS_GUIDES", False)
    has_margin = chosen.get("HAS_LIMITS", False) and (not is_guided or "HAS_OWNERS" in chosen)
    flags = TileFlags(
        ACC_DTYPE=tl.float64 if dtype == "fp64" else tl.float32, PRECISION="ieee", NORMALIZE=True,
        USE_DESCRIPTORS=use_descriptors, SYMMETRIC=True, IS_BOUNDED=True,
        DTYPE=TRITON_DTYPES[dtype],
    )._replace(**chosen)  # fmt: skip
    constexprs: dict[str, object] = {
        "BLOCK_N": tiles.block_n, "BLOCK_M": tiles.block_m, "BLOCK_D": tiles.block_d,
        "flags": flags,
    }  # fmt: skip
    if not is_kept and "kept" in kernel.arg_names:
        constexprs["kept"] = None
    if not flags.NEED_SCALE_GRAD and "scale_partial_ptr" in kernel.arg_names:
        constexprs["scale_partial_ptr"] = None
    number = "*fp64" if dtype == "fp64" else "*fp32"
    types = _tuples(flags, number)
    types["rules"] = _rules(flags, number, has_margin, is_guided)
    types |= {"strides": ("i32",) * _NUM_STRIDES.get(kernel.__name__, 2)}
    blocks = {"query": (tiles.block_n, tiles.block_d), "candidates": (tiles.block_m, tiles.block_d)}
    blocks["gradient_out"] = blocks["kept"] = (tiles.block_n, tiles.block_m)
    if kernel.__name__ == "_sigmoid_bwd_kernel":
        types["vectors"] = SigmoidVectors(*[types["bias_ptr"]] * 4)
    for argument, (rows, width) in blocks.items():
        matrix = f"tensordesc<{dtype}[{rows},{width}]>" if use_descriptors else f"*{dtype}"
        types[argument] = matrix
    return compile_case(
        name, kernel, constexprs, types, tiles.num_warps, tiles.num_stages, GPUS_OF_ENTRY[arch]
    )


_NUM_STRIDES = {
    "_contrastive_fwd_kernel": 3,
    "_contrastive_bwd_kernel": 3,
    "_sigmoid_bwd_kernel": 3,
}


def _given(is_given: bool, kind: str) -> str | None:
    return kind if is_given else None


def _rules(flags: TileFlags, number: str, has_margin: bool, is_guided: bool) -> TileRules:
    """number: a pointer to the accumulator dtype."""
    guide = "*fp64" if number == "*fp64" else "*fp16"
    return TileRules(
        scale_ptr=number,
        query_inverse_norm_ptr=_given(flags.NORMALIZE, number),
        candidate_inverse_norm_ptr=_given(flags.NORMALIZE, number),
        query_ids_ptr=_given(flags.HAS_IDS, "*i64"),
        candidate_ids_ptr=_given(flags.HAS_IDS, "*i64"),
        negative_owner_ptr=_given(flags.HAS_OWNERS, "*i64"),
        row_limit_ptr=_given(has_margin, number),
        column_limit_ptr=_given(has_margin and flags.SYMMETRIC, number),
        query_guide_ptr=_given(is_guided, guide),
        candidate_guide_ptr=_given(is_guided, guide),
        guide_width=_given(is_guided, "i32"),
        row_guide_limit_ptr=_given(is_guided, number),
        column_guide_limit_ptr=_given(is_guided and flags.SYMMETRIC, number),
    )


def _tuples(flags: TileFlags, number: str) -> dict[str, Any]:
    """The types of everything but matrices; number: a pointer to the accumulator dtype."""
    lines: Any = [number] * len(Partials._fields)
    return {
        "weights": ("fp32", "fp32"),
        "tie_bounds": (_given(flags.WITH_STATS, number),) * 2,
        "out": Partials(*lines)._replace(row_counts="*i32"),  # type: ignore[arg-type]
        "vectors": GradientVectors(*[number] * 2),  # type: ignore[arg-type]
        "scalar_partials": (_given(flags.NEED_SCALE_GRAD, number),) * 2,
        **dict.fromkeys(_POINTERS, number),
    }


_POINTERS = (
    *("bias_ptr", "row_partial_ptr", "scale_partial_ptr", "positive_logit_ptr"),
    "positive_log2_ptr",
)
