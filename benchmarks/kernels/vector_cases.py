"""The shipped configurations of the kernels on vectors and single rows."""

from __future__ import annotations

from typing import Any

import triton.language as tl

from benchmarks.kernels.compile_case import CompileCase, compile_case
from crossalign.contrastive.problem import ContrastiveGrads, ContrastiveSums
from crossalign.kernels import (
    contrastive_coefficients,
    contrastive_join,
    kept_exponentials,
    one_pass,
    pair_terms,
    row_gradients,
    row_norms,
)


def vector_cases() -> list[CompileCase]:
    """Each with every option."""
    return [*_coefficients(), _join(), _kept_gradient(), *_pair_terms(), *_rows()]


def _coefficients() -> list[CompileCase]:
    constexprs: dict[str, object] = {
        "SYMMETRIC": True, "IS_BOUNDED": True, "MULTI_POSITIVE": True, "NORMALIZE": True,
        "WITH_LOGIT_SUMS": True, "HAS_FACTOR": True, "BLOCK": contrastive_coefficients.BLOCK,
        "ACC_DTYPE": tl.float32,
    }  # fmt: skip
    types: dict[str, Any] = {
        "grads": ContrastiveGrads(*map(_pointer, ContrastiveGrads._fields)),  # type: ignore[arg-type]
        "sums": ContrastiveSums(*map(_pointer, ContrastiveSums._fields)),  # type: ignore[arg-type]
    }
    pairs = contrastive_coefficients.PairGradient
    of_pairs = constexprs | {"WITH_LOGIT_SUMS": False, "HAS_FACTOR": False}
    kernel = contrastive_coefficients._coefficients_kernel
    return [
        compile_case(name, kernel, given, types | {"pairs": of}, num_warps=4)
        for name, given, of in (
            ("coefficients", constexprs, pairs()),
            ("coefficients_of_pairs", of_pairs, pairs("*fp32", "*fp32")),
        )
    ]


def _join() -> CompileCase:
    constexprs: dict[str, object] = {
        "SYMMETRIC": True, "IS_BOUNDED": False, "MULTI_POSITIVE": True, "WITH_STATS": True,
        "WITH_LOGIT_SUMS": True, "BLOCK": contrastive_join.BLOCK, "LINES": contrastive_join.LINES,
    }  # fmt: skip
    partials, sums = contrastive_join.Partials._fields, ContrastiveSums._fields
    types: dict[str, Any] = {
        "partials": contrastive_join.Partials(*map(_pointer, partials)),  # type: ignore[arg-type]
        "sums": ContrastiveSums(*map(_pointer, sums)),  # type: ignore[arg-type]
    }
    return compile_case("join", contrastive_join._join_kernel, constexprs, types, num_warps=4)


def _pointer(name: str) -> str:
    return "*i32" if name in ("row_counts", "num_above", "num_tied") else "*fp32"


def _kept_gradient() -> CompileCase:
    constexprs: dict[str, object] = {"SYMMETRIC": True, "BLOCK_N": 16, "BLOCK_M": 256}
    types = {"kept_ptr": "*bf16", "gradient_ptr": "*bf16"}
    kernel = kept_exponentials._kept_gradient_kernel
    return compile_case("kept_gradient_bf16", kernel, constexprs, types, num_warps=4)


def _pair_terms() -> list[CompileCase]:
    constexprs: dict[str, object] = {
        "SYMMETRIC": True,
        "MULTI_POSITIVE": True,
        "BLOCK": pair_terms.BLOCK,
    }
    kernels = {"fwd": pair_terms._pair_terms_fwd_kernel, "bwd": pair_terms._pair_terms_bwd_kernel}
    return [
        compile_case(f"pair_terms_{name}", kernel, constexprs, {}, num_warps=4)
        for name, kernel in kernels.items()
    ]


def _rows() -> list[CompileCase]:
    """The widest block, in which a row of more features is read piece by piece."""
    block_d, num_warps = row_norms.row_launch_shape(row_norms.LARGEST_BLOCK_D)
    sizes: dict[str, object] = {"BLOCK_D": block_d}
    embeddings = ("query_ptr", "columns_ptr", "candidates_ptr", "scaled_ptr")
    types = dict.fromkeys((*embeddings, "grad_query_ptr", "grad_candidates_ptr"), "*bf16")
    cases = {
        "inverse_norm_bf16": (row_norms._inverse_norm_kernel, sizes | {"ACC_DTYPE": tl.float32}),
        "scaled_queries_bf16": (one_pass._scaled_queries_kernel, sizes),
        "row_gradients_bf16": (row_gradients._row_gradients_kernel, sizes),
    }
    return [
        compile_case(name, kernel, constexprs, types, num_warps)
        for name, (kernel, constexprs) in cases.items()
    ]
