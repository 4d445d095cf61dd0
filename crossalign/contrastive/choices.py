"""The names that options of the loss take, for settings and checks that need no PyTorch."""

from __future__ import annotations

from typing import Literal

Direction = Literal["query_to_key", "key_to_query", "query_to_query", "key_to_key"]
Partition = Literal["joint", "per_direction"]
SameId = Literal["mask", "positive"]
HardnessOn = Literal["all", "in_batch", "owned"]
MarginType = Literal["absolute", "relative"]
Reduction = Literal["mean", "sum", "none"]
Gather = Literal["auto", "all_gather", "ring"]

ONE_WAY: tuple[Direction, ...] = ("query_to_key",)
BOTH_WAYS: tuple[Direction, ...] = ("query_to_key", "key_to_query")
