"""What AlignmentModel asks of the batches it is given, and what of them the language model gets."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from crossalign.alignment.padding import LENGTHS
from crossalign.argument_checks import check_dims, check_tensor
from crossalign.contrastive.options import LossOptions
from crossalign.models.next_token_loss import IGNORED_LABEL

# Tokenizers add token_type_ids unasked, and GPT-2 would add them to its embeddings as if they were
# words.
_NOT_FOR_THE_MODEL = ("labels", LENGTHS, "token_type_ids")


def check_batch(
    name: str, batch: Any, entries: tuple[str, ...], model_takes: frozenset[str]
) -> None:
    """A mapping with these (B, T) tensors, all of one shape; an attention_mask may be 4-D.

    model_takes: parameter names of the model's forward, which must know whatever else is there.
    """
    if not isinstance(batch, Mapping):
        raise TypeError(
            f"AlignmentModel: {name} must be a dict of tensors, got {type(batch).__name__}"
        )
    missing = [entry for entry in entries if entry not in batch]
    if missing:
        raise ValueError(
            f"AlignmentModel: {name} must hold {' and '.join(entries)}, got {sorted(batch)}"
        )
    for entry in batch:
        if entry not in (*entries, *_NOT_FOR_THE_MODEL) and entry not in model_takes:
            raise ValueError(
                f"AlignmentModel: {name} must hold what the model's forward takes, got {entry!r}, "
                "which it does not; leave it out"
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


def asks_for_owners(options: LossOptions) -> bool:
    """Whether an option must know whose hard negative each is."""
    has_margin = options.false_negative_margin is not None
    is_within = "key_to_key" in options.directions
    return options.hard_negative_weight != 0 or has_margin or is_within


def pair_of_negatives(
    options: LossOptions,
    source: Mapping[str, Tensor],
    target: Mapping[str, Tensor],
    negatives: Mapping[str, Tensor] | None,
) -> Tensor | None:
    """(H,) the pair whose hard negative each row is, where an option asks for it."""
    num_pairs = source["input_ids"].shape[0]
    if target["input_ids"].shape[0] != num_pairs:
        raise ValueError(
            f"AlignmentModel: target must have the {num_pairs} rows of source, got "
            f"{target['input_ids'].shape[0]}"
        )
    if negatives is None or not asks_for_owners(options):
        return None
    num_negatives = negatives["input_ids"].shape[0]
    if num_negatives != num_pairs:
        raise ValueError(
            f"AlignmentModel: negatives must have one row per pair ({num_pairs}) for "
            f"hard_negative_weight, false_negative_margin and key_to_key, got {num_negatives}"
        )
    return torch.arange(num_pairs, device=negatives["input_ids"].device)


def parameters_of_forward(model: Any) -> frozenset[str]:
    """Names that the language model's forward takes, inside of a PEFT wrapper too."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return frozenset(inspect.signature(base.forward).parameters)


def model_inputs(batch: Mapping[str, Tensor], model_takes: frozenset[str]) -> dict[str, Tensor]:
    """All of a batch but labels and token types, with the positions that its mask implies.

    A model that numbers positions from the left edge of a row gives left-padded sentences states
    other than the right-padded ones. So tokens are numbered here, padding apart, unless the batch
    has position_ids or the model derives positions from the mask by itself.
    """
    inputs = {name: value for name, value in batch.items() if name not in _NOT_FOR_THE_MODEL}
    mask = inputs.get("attention_mask")
    if mask is not None and mask.dim() == 2 and "position_ids" in model_takes - inputs.keys():
        inputs["position_ids"] = ((mask != 0).cumsum(1) - 1).clamp(min=0)
    return inputs


def labels_after_tokens(batch: Mapping[str, Tensor]) -> Tensor:
    """The labels, but for that of a row's first token where padding stands before it: nothing
    predicts the first token of a right-padded row either."""
    labels, mask = batch["labels"], batch.get("attention_mask")
    if mask is None or mask.dim() != 2:
        return labels
    is_first = torch.zeros_like(labels, dtype=torch.bool)
    is_first[:, 1:] = ((mask[:, :-1] == 0) & (mask[:, 1:] != 0)).to(labels.device)
    return labels.masked_fill(is_first, IGNORED_LABEL)


def _is_prepared_mask(batch: Mapping[str, Tensor]) -> bool:
    """Whether attention_mask is (B, 1, T, T): who may look at whom, for packed texts."""
    rows, width = batch["input_ids"].shape
    mask = batch["attention_mask"]
    return isinstance(mask, Tensor) and mask.shape == (rows, 1, width, width)
