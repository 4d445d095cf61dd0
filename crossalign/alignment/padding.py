"""Rows of one batch: who gets which, padding that no chunk needs, and rows where there are none."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from crossalign.models.next_token_loss import IGNORED_LABEL

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


def no_text(device: torch.device) -> dict[str, Tensor]:
    """An lm batch of one token without a label: every block runs, and nothing is learned."""
    ids = torch.zeros(1, 1, dtype=torch.long, device=device)
    return {**one_token(ids), "labels": torch.full((1, 1), IGNORED_LABEL)}


def one_token(like: Tensor) -> dict[str, Tensor]:
    ids = like.new_zeros(1, 1)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
