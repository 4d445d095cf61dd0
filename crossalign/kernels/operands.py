"""Queries and candidates as the tile kernels read them, and the arguments these kernels share.

What shapes a tile beyond its product is in two named tuples, so that a kernel has few parameters:
pointers to read from, and choices that are compiled in. Sizes that follow the batch stay parameters
of their own, since Triton specializes an integer inside of a tuple.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from crossalign.contrastive.problem import ContrastiveProblem
from crossalign.kernels.guides import guide_operand
from crossalign.kernels.launch import INTERPRETED, accumulator_dtype
from crossalign.kernels.row_norms import inverse_norms
from crossalign.kernels.tiles import GradientChunk, Tiles, architecture
from crossalign.precision import accumulator

TRITON_DTYPES = {"bf16": tl.bfloat16, "fp16": tl.float16, "fp32": tl.float32, "fp64": tl.float64}
SHORT_NAMES = {
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.float32: "fp32",
    torch.float64: "fp64",
}
USE_DESCRIPTORS_INTERPRETED = True  # tests switch it to run both ways of loading


class TileRules(NamedTuple):
    """One number per row or per column each; None where the call has none."""

    scale_ptr: Any  # ()
    query_inverse_norm_ptr: Any = None  # (N,)
    candidate_inverse_norm_ptr: Any = None  # (M,)
    query_ids_ptr: Any = None  # (N,)
    candidate_ids_ptr: Any = None  # (num_ids,)
    negative_owner_ptr: Any = None  # (M - K,)
    row_limit_ptr: Any = None  # (N,) natural units
    column_limit_ptr: Any = None  # (K,)
    query_guide_ptr: Any = None  # (N, guide_width), see guides
    candidate_guide_ptr: Any = None  # (M, guide_width)
    guide_width: Any = None
    row_guide_limit_ptr: Any = None  # (N,)
    column_guide_limit_ptr: Any = None  # (K,)


class TileFlags(NamedTuple):
    """Compiled in."""

    ACC_DTYPE: Any
    PRECISION: str
    NORMALIZE: bool
    USE_DESCRIPTORS: bool
    SYMMETRIC: bool = False
    IS_BOUNDED: bool = False
    HAS_IDS: bool = False
    MULTI_POSITIVE: bool = False
    HAS_OWNERS: bool = False
    SHARE_NEGATIVES: bool = True
    EXCLUDE_OWNED: bool = False
    HAS_LIMITS: bool = False  # of similarities, or of a guide's
    HARDNESS_ON: str = "none"  # "none", "all", "in_batch", "owned"
    WITH_LOGIT_SUMS: bool = False
    WITH_BEST: bool = False  # of the forward pass: the best positive of each row
    WITH_STATS: bool = False
    NEED_SCALE_GRAD: bool = False  # of the backward pass
    DTYPE: Any = None  # of what is stored: kept exponentials, the gradient matrix


@dataclass(frozen=True)
class TileOperands:
    """Queries and candidates as the kernels read them, with their inverse norms."""

    query: Tensor
    candidates: Tensor
    problem: ContrastiveProblem
    query_inverse_norm: Tensor
    candidate_inverse_norm: Tensor
    num_features: int  # of the inputs; operands may be padded with zeros

    @classmethod
    def make(
        cls,
        query: Tensor,
        candidates: Tensor,
        problem: ContrastiveProblem,
        norms: tuple[Tensor, Tensor] | None = None,
    ) -> TileOperands:
        """norms: the inverse norms, if a pass before has them."""
        # Of a symmetric matrix these kernels form both halves: the rows' terms have it all.
        if problem.same_side:
            problem = problem._replace(same_side=False, column_limit=None, column_guide_limit=None)
        problem = _with_guide_operands(problem, accumulator(query.dtype))
        num_features = query.shape[1]
        query, candidates = _readable(query, candidates)
        if norms is None and problem.normalize:
            norms = inverse_norms(query, candidates)
        if norms is None:
            none = torch.empty(0, dtype=accumulator(query.dtype), device=query.device)
            norms = none, none.clone()
        return cls(query, candidates, problem, *norms, num_features)

    def of_rows(self, rows: slice) -> TileOperands:
        """Some of the queries against all candidates."""
        ids, owner = self.problem.query_ids, self.problem.negative_owner
        limit, guide_limit = self.problem.row_limit, self.problem.row_guide_limit
        guide = self.problem.query_guide
        problem = self.problem._replace(
            query_ids=None if ids is None else ids[rows],
            row_limit=None if limit is None else limit[rows],
            query_guide=None if guide is None else guide[rows],
            row_guide_limit=None if guide_limit is None else guide_limit[rows],
            negative_owner=None if owner is None else owner - rows.start,
            label_offset=self.problem.label_offset + rows.start,
        )
        inverse_norm = self.query_inverse_norm[rows]
        return replace(
            self, query=self.query[rows], problem=problem, query_inverse_norm=inverse_norm
        )

    def tile_arguments(self, tiles: Tiles, **flags: Any) -> dict[str, Any]:
        """What the kernels that multiply tiles take, but strides; flags: beyond what the problem
        tells."""
        return {
            "query": self._operand(self.query, tiles.block_n, tiles.block_d),
            "candidates": self._operand(self.candidates, tiles.block_m, tiles.block_d),
            "rules": self._rules(),
            "weights": (self.problem.hard_negative_weight, self.problem.hardness),
            **self.sizes(),
            "BLOCK_N": tiles.block_n,
            "BLOCK_M": tiles.block_m,
            "BLOCK_D": tiles.block_d,
            "flags": self._flags()._replace(**flags),
            "num_warps": tiles.num_warps,
            "num_stages": tiles.num_stages,
        }

    def product_arguments(self, tiles: Tiles) -> dict[str, Any]:
        """The same for kernels that no rule changes, so that rules compile none of them again."""
        arguments = self.tile_arguments(tiles)
        rules, flags = arguments["rules"], arguments["flags"]
        return arguments | {
            "rules": TileRules(*rules[: TileRules._fields.index("query_ids_ptr")]),
            "flags": TileFlags(*flags[: TileFlags._fields.index("SYMMETRIC")]),
        }

    @property
    def strides(self) -> tuple[int, int]:
        return self.query.stride(0), self.candidates.stride(0)

    def sizes(self) -> dict[str, int]:
        """Each a parameter of its own, since Triton specializes integers inside of a tuple."""
        candidate_ids = self.problem.candidate_ids
        return {
            "num_queries": self.query.shape[0],
            "num_candidates": self.candidates.shape[0],
            "num_keys": self.problem.num_keys,
            "num_ids": 0 if candidate_ids is None else candidate_ids.shape[0],
            "num_features": self.query.shape[1],
            "label_offset": self.problem.label_offset,
        }

    @property
    def use_descriptors(self) -> bool:
        """Tensor descriptors are TMA from Hopper on; before it they are slower than pointers."""
        return USE_DESCRIPTORS_INTERPRETED if INTERPRETED else architecture(self.query) >= 90

    def output(self, x: Tensor, tiles: Tiles) -> Tensor | TensorDescriptor:
        """A matrix that tiles are stored to."""
        return self._operand(x, tiles.block_n, tiles.block_m)

    def _operand(self, x: Tensor, block_rows: int, block_width: int) -> Tensor | TensorDescriptor:
        if not self.use_descriptors:
            return x
        return TensorDescriptor(x, list(x.shape), list(x.stride()), [block_rows, block_width])

    def _rules(self) -> TileRules:
        problem = self.problem
        return TileRules(
            scale_ptr=problem.scale,
            query_inverse_norm_ptr=self.query_inverse_norm if problem.normalize else None,
            candidate_inverse_norm_ptr=self.candidate_inverse_norm if problem.normalize else None,
            query_ids_ptr=_contiguous(problem.query_ids),
            candidate_ids_ptr=_contiguous(problem.candidate_ids),
            negative_owner_ptr=_contiguous(problem.negative_owner),
            row_limit_ptr=_contiguous(problem.row_limit),
            column_limit_ptr=_contiguous(problem.column_limit),
            query_guide_ptr=problem.query_guide,
            candidate_guide_ptr=problem.candidate_guide,
            guide_width=None if problem.query_guide is None else problem.query_guide.shape[1],
            row_guide_limit_ptr=_contiguous(problem.row_guide_limit),
            column_guide_limit_ptr=_contiguous(problem.column_guide_limit),
        )

    def _flags(self) -> TileFlags:
        problem = self.problem
        return TileFlags(
            ACC_DTYPE=accumulator_dtype(self.query.dtype),
            PRECISION=dot_precision(self.query),
            NORMALIZE=problem.normalize,
            USE_DESCRIPTORS=self.use_descriptors,
            SYMMETRIC=problem.symmetric,
            IS_BOUNDED=problem.bound is not None,
            HAS_IDS=problem.query_ids is not None and problem.candidate_ids is not None,
            MULTI_POSITIVE=problem.multi_positive,
            HAS_OWNERS=problem.negative_owner is not None,
            SHARE_NEGATIVES=problem.share_negatives,
            EXCLUDE_OWNED=problem.exclude_owned,
            HAS_LIMITS=problem.has_limits,
            HARDNESS_ON=problem.hardness_on if problem.hardness else "none",
            WITH_LOGIT_SUMS=problem.with_logit_sums,
        )


def _with_guide_operands(problem: ContrastiveProblem, dtype: torch.dtype) -> ContrastiveProblem:
    """With the guide's rows as the kernels read them, and its limits in the accumulator dtype."""
    if problem.query_guide is None or problem.candidate_guide is None:
        return problem
    assert problem.row_guide_limit is not None
    of_columns = problem.column_guide_limit
    return problem._replace(
        query_guide=guide_operand(problem.query_guide, True, dtype),
        candidate_guide=guide_operand(problem.candidate_guide, False, dtype),
        row_guide_limit=problem.row_guide_limit.to(dtype),
        column_guide_limit=None if of_columns is None else of_columns.to(dtype),
    )


def _contiguous(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()


def _readable(query: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor]:
    """Both as the kernels can read them, of one width: as they are, or copies padded with zeros.

    A tensor descriptor needs unit stride along D and rows of their own, 16-byte aligned. The width
    is one decision for both sides: the gradient of each is a product with the other.
    """
    per_16_bytes = max(1, 16 // query.element_size())
    are_readable = [_has_aligned_rows(x, per_16_bytes) for x in (query, candidates)]
    padding = 0 if all(are_readable) else -query.shape[1] % per_16_bytes
    if padding:
        padded = [torch.nn.functional.pad(x, (0, padding)) for x in (query, candidates)]
        return padded[0], padded[1]
    kept = [
        x if is_readable else x.clone(memory_format=torch.contiguous_format)
        for x, is_readable in zip((query, candidates), are_readable, strict=True)
    ]
    return kept[0], kept[1]


def _has_aligned_rows(x: Tensor, per_16_bytes: int) -> bool:
    has_rows = x.stride(1) == 1 and x.stride(0) >= x.shape[1]
    return has_rows and x.stride(0) % per_16_bytes == 0 and x.data_ptr() % 16 == 0


def dot_precision(x: Tensor) -> str:
    """float32 products are IEEE unless PyTorch's own switch for CUDA products allows tf32.

    torch.get_float32_matmul_precision() raises once the newer switch has been used; that one
    follows the older.
    """
    if x.dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision == "tf32":
        return "tf32"
    return "ieee"


def gradient_arguments(
    operands: TileOperands,
    tiles: Tiles,
    chunk: GradientChunk,
    gradient: Tensor,
    *,
    need_scale_grad: bool,
) -> dict[str, Any]:
    """What the kernels take that fill gradient, whole tiles of a chunk's rows and columns."""
    return {
        **operands.tile_arguments(
            tiles,
            NEED_SCALE_GRAD=need_scale_grad,
            DTYPE=TRITON_DTYPES[SHORT_NAMES[gradient.dtype]],
        ),
        "gradient_out": operands.output(gradient, tiles),
        "strides": (*operands.strides, gradient.stride(0)),
        "first_chunk_row": chunk.rows.start,
        "first_chunk_column": chunk.columns.start,
        "num_tiles_m": triton.cdiv(chunk.num_columns, tiles.block_m),
        "num_tiles": chunk.num_tiles(tiles),
        "first_partial": chunk.first_partial,
    }
