"""What a contrastive step costs each rank."""

from __future__ import annotations


def gathered_bytes(num_columns: int, num_features: int, itemsize: int, wide_itemsize: int) -> int:
    """The columns of all ranks, their gradient, and the sum it is rounded from."""
    return num_columns * num_features * (2 * itemsize + wide_itemsize)
