"""What AlignmentModel asks of the batches it is given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from crossalign.argument_checks import check_dims, check_tensor


def check_batch(name: str, batch: Any, entries: tuple[str, ...]) -> None:
    """A mapping with these (B, T) tensors, all of one shape; an attention_mask may be 4-D."""
    if not isinstance(batch, Mapping):
        raise TypeError(
            f"AlignmentModel: {name} must be a dict of tensors, got {type(batch).__name__}"
        )
    missing = [entry for entry in entries if entry not in batch]
    if missing:
        raise ValueError(
            f"AlignmentModel: {name} must hold {' and '.join(entries)}, got {sorted(batch)}"
        )
    optional = [entry for entry in ("attention_mask", "position_ids") if entry in batch]
    for entry in (*entries, *optional):
        label = f"{name}[{entry!r}]"
        if entry == "attention_mask" and name == "lm" and _is_prepared_mask(batch):
            continue
        check_tensor("AlignmentModel", label, batch[entry])
        check_dims("AlignmentModel", label, batch[entry], "(B, T)")
        if batch[entry].shape != batch["input_ids"].shape:
            raise ValueError(
                f"AlignmentModel: {label} must have the shape of input_ids "
                f"{tuple(batch['input_ids'].shape)}, got {tuple(batch[entry].shape)}"
            )


def _is_prepared_mask(batch: Mapping[str, Tensor]) -> bool:
    """Whether attention_mask is (B, 1, T, T): who may look at whom, for packed texts."""
    rows, width = batch["input_ids"].shape
    mask = batch["attention_mask"]
    return isinstance(mask, Tensor) and mask.shape == (rows, 1, width, width)
