"""Which tile sizes run where, and how tiles are dealt to programs.

Tile sizes are keyed by architecture, dtype and the options that cost registers, never by N or M.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from crossalign.contrastive.problem import ContrastiveProblem
from crossalign.kernels.launch import INTERPRETED, compute_capability


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


class TileTable(NamedTuple):
    """The tiles of both passes; `masked` where further positives, maxima or one further rule need
    the registers, `ruled` where several of them do."""

    forward: Tiles
    forward_masked: Tiles
    forward_ruled: Tiles
    backward: Tiles
    backward_masked: Tiles
    backward_ruled: Tiles


_IEEE = (*[Tiles(128, 64, 16, 8, 3)] * 2, Tiles(64, 64, 16, 8, 3))
_FLOAT64 = (*[Tiles(64, 64, 16, 8, 2)] * 2, Tiles(32, 64, 16, 8, 2))
# (architecture, bytes per element). The largest that spill no more than a few registers outside of
# the product loop, with Triton 3.6 and 3.7. Operands come from L2, of which tiles of 128 x 64 ask
# twice the bytes that tiles of 128 x 256 do. See benchmarks/results/kernel_resources.md.
TILES = {
    (80, 2): TileTable(
        forward=Tiles(128, 128, 64, 8, 3),
        forward_masked=Tiles(128, 64, 64, 8, 3),
        forward_ruled=Tiles(64, 64, 64, 8, 3),
        backward=Tiles(128, 128, 64, 8, 3),
        backward_masked=Tiles(128, 64, 64, 8, 3),
        backward_ruled=Tiles(64, 64, 64, 8, 3),
    ),
    (90, 2): TileTable(
        forward=Tiles(128, 256, 64, 8, 3),
        forward_masked=Tiles(128, 64, 64, 8, 3),
        forward_ruled=Tiles(64, 64, 64, 8, 3),
        backward=Tiles(128, 256, 64, 8, 3),
        backward_masked=Tiles(128, 128, 64, 8, 4),
        backward_ruled=Tiles(128, 64, 64, 8, 3),
    ),
    (100, 2): TileTable(
        forward=Tiles(128, 64, 64, 8, 3),
        forward_masked=Tiles(64, 64, 64, 8, 3),
        forward_ruled=Tiles(64, 32, 64, 8, 3),
        backward=Tiles(128, 64, 64, 8, 3),
        backward_masked=Tiles(128, 64, 64, 8, 3),
        backward_ruled=Tiles(64, 64, 64, 8, 3),
    ),
    (80, 4): TileTable(*_IEEE, *_IEEE),
    (90, 4): TileTable(*_IEEE, *_IEEE),
    (100, 4): TileTable(*_IEEE, *_IEEE),
    # Within the 99 KiB that a block may have on a GPU of the consumer line.
    (80, 8): TileTable(*_FLOAT64, *_FLOAT64)._replace(
        backward_masked=Tiles(64, 32, 16, 8, 2), backward_ruled=Tiles(32, 32, 16, 8, 2)
    ),
    (90, 8): TileTable(*_FLOAT64, *_FLOAT64),
    (100, 8): TileTable(*_FLOAT64, *_FLOAT64),
}


def architecture(x: Tensor) -> int:
    """The table's key for a tensor's GPU: 80 before Hopper, 90 on it, 100 after it."""
    capability = compute_capability(x)
    return 100 if capability >= 100 else 90 if capability >= 90 else 80


def forward_tiles(x: Tensor, problem: ContrastiveProblem) -> Tiles:
    if INTERPRETED:
        return INTERPRETER_TILES
    table, needs = TILES[architecture(x), x.element_size()], _register_needs(problem)
    if needs == "ruled":
        return table.forward_ruled
    is_masked = needs == "masked" or problem.multi_positive
    return table.forward_masked if is_masked else table.forward


def backward_tiles(x: Tensor, problem: ContrastiveProblem) -> Tiles:
    if INTERPRETED:
        return INTERPRETER_TILES
    table, needs = TILES[architecture(x), x.element_size()], _register_needs(problem)
    # Where a guide's product meets a gradient, masked tiles spill hundreds of registers on sm_90.
    if needs == "ruled" or problem.query_guide is not None:
        return table.backward_ruled
    is_masked = needs == "masked" or problem.multi_positive or problem.bound is None
    return table.backward_masked if is_masked else table.backward


def _register_needs(problem: ContrastiveProblem) -> str:
    """Of limits, sums of logits and hardness: "" without them, "ruled" where they meet one another
    or maxima or further positives, else "masked"."""
    rules = (problem.has_limits, problem.with_logit_sums, problem.hardness != 0)
    if not any(rules):
        return ""
    is_heavy = sum(rules) > 1 or problem.multi_positive or problem.bound is None
    return "ruled" if is_heavy else "masked"


def program_slots(x: Tensor) -> int:
    """How many programs run at once: one per multiprocessor; two under the interpreter."""
    if not x.is_cuda:
        return 2
    return int(torch.cuda.get_device_properties(x.device).multi_processor_count)


class GradientChunk(NamedTuple):
    """Rows times columns of logits, as large as the workspace."""

    rows: slice
    columns: slice
    first_partial: int  # where this chunk's sums for the scale begin

    @property
    def num_columns(self) -> int:
        return int(self.columns.stop - self.columns.start)

    def num_tiles(self, tiles: Tiles) -> int:
        num_rows = self.rows.stop - self.rows.start
        return int(-(-num_rows // tiles.block_n) * -(-self.num_columns // tiles.block_m))


# Plans whose longest program is within this of the shortest possible count as equally short.
EQUALLY_SHORT = 1.005


class ProgramPlan(NamedTuple):
    """A rectangle of tiles per program: groups of row blocks times splits of the columns."""

    groups: int
    splits: int
    blocks_per_group: int
    blocks_per_split: int


@functools.lru_cache(maxsize=1024)
def plan_programs(row_blocks: int, column_blocks: int, slots: int, tiles: Tiles) -> ProgramPlan:
    """The partition whose largest rectangle is smallest; of equally short ones, that whose programs
    read the fewest different rows at a time, which L2 has to hold."""
    if not (row_blocks and column_blocks):
        return ProgramPlan(1, 1, 0, 0)
    plans = []
    for splits in range(1, min(column_blocks, slots) + 1):
        blocks_per_split = -(-column_blocks // splits)
        blocks_per_group = -(-row_blocks // min(row_blocks, slots // splits))
        groups = -(-row_blocks // blocks_per_group)
        plan = ProgramPlan(groups, splits, blocks_per_group, blocks_per_split)
        live_rows = groups * tiles.block_n + splits * tiles.block_m
        plans.append((blocks_per_group * blocks_per_split, live_rows, plan))
    longest = EQUALLY_SHORT * min(plans)[0]
    return min(plan[1:] for plan in plans if plan[0] <= longest)[1]
