"""Which tile sizes run where, how tiles are dealt to programs, and the arguments kernels share.

Tile sizes are keyed by architecture, dtype and the options that cost registers, never by N or M.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from crossalign.contrastive.problem import ContrastiveProblem
from crossalign.kernels.launch import (
    INTERPRETED,
    accumulator_dtype,
    compute_capability,
)
from crossalign.kernels.row_norms import inverse_norms
from crossalign.precision import accumulator

TRITON_DTYPES = {"bf16": tl.bfloat16, "fp16": tl.float16, "fp32": tl.float32, "fp64": tl.float64}


SHORT_NAMES = {
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.float32: "fp32",
    torch.float64: "fp64",
}


class Tiles(NamedTuple):
    """Tile sizes and launch shape of one kernel."""

    block_n: int
    block_m: int
    block_d: int
    num_warps: int
    num_stages: int


# The interpreter runs one element-wise NumPy call per operation: small tiles, so that small test
# shapes cross tile edges in every dimension.
INTERPRETER_TILES = Tiles(16, 32, 16, 4, 1)
USE_DESCRIPTORS_INTERPRETED = True  # tests switch it to run both ways of loading


class TileTable(NamedTuple):
    """The tiles of both passes; `masked` where further positives or maxima need the registers."""

    forward: Tiles
    forward_masked: Tiles
    backward: Tiles
    backward_masked: Tiles


_IEEE = Tiles(128, 64, 16, 8, 3)
# (architecture, bytes per element). The largest that spill no more than a few registers outside of
# the product loop, with Triton 3.6 and 3.7. Operands come from L2, of which tiles of 128 x 64 ask
# twice the bytes that tiles of 128 x 256 do. See benchmarks/results/kernel_resources.md.
TILES = {
    (80, 2): TileTable(
        forward=Tiles(128, 128, 64, 8, 3),
        forward_masked=Tiles(128, 64, 64, 8, 3),
        backward=Tiles(128, 128, 64, 8, 3),
        backward_masked=Tiles(128, 64, 64, 8, 3),
    ),
    (90, 2): TileTable(
        forward=Tiles(128, 256, 64, 8, 3),
        forward_masked=Tiles(128, 64, 64, 8, 3),
        backward=Tiles(128, 256, 64, 8, 3),
        backward_masked=Tiles(128, 128, 64, 8, 4),
    ),
    (100, 2): TileTable(
        forward=Tiles(128, 64, 64, 8, 3),
        forward_masked=Tiles(64, 64, 64, 8, 3),
        backward=Tiles(128, 64, 64, 8, 3),
        backward_masked=Tiles(128, 64, 64, 8, 3),
    ),
    (80, 4): TileTable(_IEEE, _IEEE, _IEEE, _IEEE),
    (90, 4): TileTable(_IEEE, _IEEE, _IEEE, _IEEE),
    (100, 4): TileTable(_IEEE, _IEEE, _IEEE, _IEEE),
}


def architecture(x: Tensor) -> int:
    """The table's key for a tensor's GPU: 80 before Hopper, 90 on it, 100 after it."""
    capability = compute_capability(x)
    return 100 if capability >= 100 else 90 if capability >= 90 else 80


def forward_tiles(x: Tensor, problem: ContrastiveProblem) -> Tiles:
    if INTERPRETED:
        return INTERPRETER_TILES
    table = TILES[architecture(x), min(4, x.element_size())]
    return table.forward_masked if problem.multi_positive else table.forward


def backward_tiles(x: Tensor, problem: ContrastiveProblem) -> Tiles:
    if INTERPRETED:
        return INTERPRETER_TILES
    table = TILES[architecture(x), min(4, x.element_size())]
    is_masked = problem.multi_positive or problem.bound is None
    return table.backward_masked if is_masked else table.backward


def program_slots(x: Tensor) -> int:
    """How many programs run at once: one per multiprocessor; two under the interpreter."""
    if not x.is_cuda:
        return 2
    return int(torch.cuda.get_device_properties(x.device).multi_processor_count)


class ProgramPlan(NamedTuple):
    """A rectangle of tiles per program: groups of row blocks times splits of the columns."""

    groups: int
    splits: int
    blocks_per_group: int
    blocks_per_split: int


@functools.lru_cache(maxsize=1024)
def plan_programs(row_blocks: int, column_blocks: int, slots: int) -> ProgramPlan:
    """The partition whose largest rectangle is smallest; of equals, the fewest splits."""
    if not (row_blocks and column_blocks):
        return ProgramPlan(1, 1, 0, 0)
    plans = []
    for splits in range(1, min(column_blocks, slots) + 1):
        blocks_per_split = -(-column_blocks // splits)
        blocks_per_group = -(-row_blocks // min(row_blocks, slots // splits))
        groups = -(-row_blocks // blocks_per_group)
        plan = ProgramPlan(groups, splits, blocks_per_group, blocks_per_split)
        plans.append((blocks_per_group * blocks_per_split, splits, plan))
    return min(plans)[2]


@dataclass(frozen=True)
class TileOperands:
    """Queries and candidates as the kernels read them, with their inverse norms."""

    query: Tensor
    candidates: Tensor
    problem: ContrastiveProblem
    query_inverse_norm: Tensor
    candidate_inverse_norm: Tensor

    @classmethod
    def make(
        cls,
        query: Tensor,
        candidates: Tensor,
        problem: ContrastiveProblem,
        norms: tuple[Tensor, Tensor] | None = None,
    ) -> TileOperands:
        """norms: the inverse norms, if a pass before has them."""
        query, candidates = _readable(query, candidates)
        if norms is None and problem.normalize:
            norms = inverse_norms(query, candidates)
        if norms is None:
            none = torch.empty(0, dtype=accumulator(query.dtype), device=query.device)
            norms = none, none.clone()
        return cls(query, candidates, problem, *norms)

    def tile_arguments(self, tiles: Tiles) -> dict[str, Any]:
        """What similarity_tile and scaled_tile take."""
        normalize = self.problem.normalize
        return {
            "query": self._operand(self.query, tiles.block_n, tiles.block_d),
            "candidates": self._operand(self.candidates, tiles.block_m, tiles.block_d),
            "scale_ptr": self.problem.scale,
            "query_inverse_norm_ptr": self.query_inverse_norm if normalize else None,
            "candidate_inverse_norm_ptr": self.candidate_inverse_norm if normalize else None,
            "stride_qn": self.query.stride(0),
            "stride_cm": self.candidates.stride(0),
            "num_queries": self.query.shape[0],
            "num_candidates": self.candidates.shape[0],
            "num_keys": self.problem.num_keys,
            "num_features": self.query.shape[1],
            "label_offset": self.problem.label_offset,
            "BLOCK_N": tiles.block_n,
            "BLOCK_M": tiles.block_m,
            "BLOCK_D": tiles.block_d,
            "ACC_DTYPE": accumulator_dtype(self.query.dtype),
            "PRECISION": dot_precision(self.query),
            "NORMALIZE": normalize,
            "USE_DESCRIPTORS": self.use_descriptors,
            "num_warps": tiles.num_warps,
            "num_stages": tiles.num_stages,
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

    def rule_arguments(self) -> dict[str, Any]:
        """What shapes the logits beyond their product: ids, owners, a bound."""
        problem = self.problem
        has_ids = problem.query_ids is not None and problem.candidate_ids is not None
        return {
            "query_ids_ptr": _contiguous(problem.query_ids),
            "candidate_ids_ptr": _contiguous(problem.candidate_ids),
            "negative_owner_ptr": _contiguous(problem.negative_owner),
            "num_ids": 0 if problem.candidate_ids is None else problem.candidate_ids.shape[0],
            "hard_negative_weight": problem.hard_negative_weight,
            "SYMMETRIC": problem.symmetric,
            "IS_BOUNDED": problem.bound is not None,
            "HAS_IDS": has_ids,
            "MULTI_POSITIVE": problem.multi_positive,
            "HAS_OWNERS": problem.negative_owner is not None,
            "SHARE_NEGATIVES": problem.share_negatives,
        }


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
    """float32 products are IEEE unless PyTorch's own switch allows tf32."""
    if x.dtype == torch.float32 and torch.get_float32_matmul_precision() != "highest":
        return "tf32"
    return "ieee"
