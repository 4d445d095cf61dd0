"""Rows per rank, and what the ranks hold, in the tests of the gather."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
# Equal, unequal and empty shards, by the number of ranks.
ROWS = {
    2: [(3, 3), (5, 2), (0, 4), (1, 0), (0, 0)],
    3: [(2, 2, 2), (4, 1, 3), (0, 5, 0), (1, 0, 2)],
    4: [(3, 0, 2, 5)],
}


def random(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def shards(rows: Sequence[int], columns: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [random(rank, count, columns, dtype=dtype) for rank, count in enumerate(rows)]


def upstreams(rows: Sequence[int], columns: int, dtype: torch.dtype) -> list[Tensor]:
    """The gradient of the gathered rows, as each rank's loss gives it."""
    return [random(100 + rank, sum(rows), columns, dtype=dtype) for rank in range(len(rows))]
