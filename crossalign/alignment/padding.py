"""Rows of one batch: their order by length, and padding that no chunk of them needs."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

LENGTHS = "lengths"  # (B,) on the CPU: tokens of each row


def trimmed(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The (B, T) and (B, 1, T, T) tensors of a batch, without what is padding in every row.

    A chunk of a batch has rows shorter than the longest of the batch. Where batch["lengths"]
    stands, rows are padded on the right, and it tells without a wait for the device.
    """
    tensors = {name: tensor for name, tensor in batch.items() if name != LENGTHS}
    if LENGTHS not in batch:
        return tensors
    width = max([1, *batch[LENGTHS].tolist()])
    return {
        name: tensor[:, :width] if tensor.dim() == 2 else tensor[..., :width, :width]
        for name, tensor in tensors.items()
    }


def share(count: int, rank: int, world_size: int) -> slice:
    """The rows of a rank: every world_size-th, so that of rows in the order of their lengths each
    rank gets as much work; shares differ by at most one row and may be empty."""
    return slice(rank, count, world_size)
