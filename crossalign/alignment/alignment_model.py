"""AlignmentModel: the joint loss of AFP around a causal LM, in one forward call per step.

loss = contrastive_weight * contrastive_loss + lm_weight * lm_loss: the contrastive loss over pooled
hidden states of one layer aligns the representations of translations, the next-token loss keeps
(and aligns) what the model says.

Shapes: N pairs, H hard negatives, B sentences, T tokens, C hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from crossalign.alignment.language_model_loss import (
    check_output_head,
    language_model_loss,
    output_head,
)
from crossalign.alignment.padding import trimmed
from crossalign.argument_checks import check_dims, check_option, check_positive_finite, check_tensor
from crossalign.contrastive_loss import fused_contrastive_loss
from crossalign.contrastive_terms import ContrastiveStats
from crossalign.encoders import check_layer, hidden_states_at
from crossalign.pooling import pool


class AlignmentOutput(NamedTuple):
    """What AlignmentModel returns; every loss is () float32 and has a gradient."""

    loss: Tensor
    contrastive_loss: Tensor
    lm_loss: Tensor  # 0 without lm
    stats: ContrastiveStats


class AlignmentModel(nn.Module):
    """A causal LM with the AFP loss: sentences meet after block `layer`, texts after the last one.

    Wrap it, not the language model inside, in DistributedDataParallel or FSDP; with
    DistributedDataParallel and no lm, the blocks past `layer` get no gradient, so freeze them or
    set find_unused_parameters=True. On several ranks give lm on all of them or on none; a rank that
    has no text can pass one whose labels are all -100.

    Args:
        model: a Hugging Face causal LM, also with PEFT adapters (but none on its output embedding).
        layer: block after which the sentences are pooled; 1 = the first. See hidden_states_at.
        pooling: "mean", "last" or "max" over a sentence's tokens.
        temperature: of the contrastive loss, > 0; an nn.Parameter is learned.
        contrastive_weight: factor of the contrastive loss.
        lm_weight: factor of the next-token loss.
        symmetric: contrast in both directions.
        hard_negative_weight: added to the logit of a pair's own hard negative.
        group: torch.distributed process group over whose ranks the batch is spread: negatives come
            from every rank, and the next-token mean is over all tokens. None: this process alone.

    Raises:
        TypeError: layer is not an integer.
        ValueError: layer is out of range, pooling is unknown, temperature is not above 0, or the
            model's decoder blocks cannot be found.

    Source: Li et al. 2024, "Improving In-context Learning of Multilingual Generative Language
        Models with Cross-lingual Alignment" (NAACL).
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        layer: int = 1,
        pooling: str = "mean",
        temperature: float | Tensor = 0.05,
        contrastive_weight: float = 1.0,
        lm_weight: float = 1.5,
        symmetric: bool = False,
        hard_negative_weight: float = 0.0,
        group: dist.ProcessGroup | None = None,
    ) -> None:
        check_layer("AlignmentModel", model, layer)
        check_option("AlignmentModel", "pooling", pooling, ("mean", "last", "max"))
        if not isinstance(temperature, Tensor):
            check_positive_finite("AlignmentModel", "temperature", temperature)
        super().__init__()
        self.model = model
        self.layer = layer
        self.pooling = pooling
        self.temperature = temperature
        self.contrastive_weight = contrastive_weight
        self.lm_weight = lm_weight
        self.symmetric = symmetric
        self.hard_negative_weight = hard_negative_weight
        self.group = group
        self._head_is_checked = False

    def forward(
        self,
        source: Mapping[str, Tensor],
        target: Mapping[str, Tensor],
        negatives: Mapping[str, Tensor] | None = None,
        lm: Mapping[str, Tensor] | None = None,
        *,
        ids: Tensor | None = None,
    ) -> AlignmentOutput:
        """The losses of one batch.

        Args:
            source: input_ids and attention_mask, (N, T) each; left or right padding.
            target: likewise, the translation of each source sentence; T may differ.
            negatives: likewise, (H, T): sentences close to a target that are no translation. With
                H = N row i is the hard negative of pair i.
            lm: input_ids and labels (B, T), -100 = ignored, and optionally attention_mask, (B, T)
                or a prepared (B, 1, T, T), and position_ids (B, T) for texts packed into a row.
            ids: (N,) integers; pairs of equal id mean the same thing and are no negatives.

        Returns:
            AlignmentOutput(loss, contrastive_loss, lm_loss, stats).

        Raises:
            TypeError: a batch is no dict of tensors, or ids are not integers.
            ValueError: an entry is missing, sizes do not match, hard_negative_weight is set and the
                negatives are not one per pair, or the model's head cannot be reproduced.

        Cost: `layer` blocks for the sentences, all blocks for lm; no (tokens x vocabulary) logits.
        """
        batches = {"source": source, "target": target}
        if negatives is not None:
            batches["negatives"] = negatives
        for name, batch in batches.items():
            _check_batch(name, batch, ("input_ids", "attention_mask"))
        if lm is not None:
            _check_batch("lm", lm, ("input_ids", "labels"))
        owner = self.negative_owner(source, target, negatives)
        contrastive_loss, stats = self.contrast(
            self.embed(source),
            self.embed(target),
            None if negatives is None else self.embed(negatives),
            owner,
            ids=ids,
        )
        lm_loss = contrastive_loss.new_zeros(())
        if lm is not None:
            lm_loss = self.next_token_loss(lm)
        elif self.group is not None:  # another rank may have texts: no token of them is here
            dist.all_reduce(torch.zeros_like(lm_loss), group=self.group)
        loss = self.contrastive_weight * contrastive_loss + self.lm_weight * lm_loss
        return AlignmentOutput(loss, contrastive_loss, lm_loss, stats)

    def embed(self, batch: Mapping[str, Tensor]) -> Tensor:
        """(B, C) pooled hidden states of block `layer`; batch: input_ids and attention_mask."""
        batch = trimmed(batch)
        mask = batch["attention_mask"]
        hidden = hidden_states_at(
            self.model, self.layer, input_ids=batch["input_ids"], attention_mask=mask
        )
        return pool(hidden, mask.to(hidden.device), self.pooling)

    def contrast(
        self,
        query: Tensor,
        key: Tensor,
        negatives: Tensor | None = None,
        owner: Tensor | None = None,
        *,
        ids: Tensor | None = None,
    ) -> tuple[Tensor, ContrastiveStats]:
        """The unweighted contrastive loss of embeddings (N, C), (N, C), (H, C), and its stats."""
        if negatives is None and self.group is not None and self.hard_negative_weight != 0.0:
            # Another rank may have hard negatives, and this one then has none of them.
            negatives, owner = query.detach()[:0], query.new_empty(0, dtype=torch.int64)
        loss, stats = fused_contrastive_loss(
            query,
            key,
            negatives,
            temperature=self.temperature,
            symmetric=self.symmetric,
            ids=ids,
            negative_owner=owner,
            hard_negative_weight=0.0 if owner is None else self.hard_negative_weight,
            group=self.group,
            return_stats=True,
        )
        return loss, stats

    def negative_owner(
        self,
        source: Mapping[str, Tensor],
        target: Mapping[str, Tensor],
        negatives: Mapping[str, Tensor] | None,
    ) -> Tensor | None:
        """(H,) the pair whose hard negative each row is, where a weight asks for it."""
        num_pairs = source["input_ids"].shape[0]
        if target["input_ids"].shape[0] != num_pairs:
            raise ValueError(
                f"AlignmentModel: target must have the {num_pairs} rows of source, got "
                f"{target['input_ids'].shape[0]}"
            )
        if negatives is None or self.hard_negative_weight == 0.0:
            return None
        num_negatives = negatives["input_ids"].shape[0]
        if num_negatives != num_pairs:
            raise ValueError(
                f"AlignmentModel: negatives must have one row per pair ({num_pairs}) for "
                f"hard_negative_weight={self.hard_negative_weight}, got {num_negatives}"
            )
        return torch.arange(num_pairs, device=negatives["input_ids"].device)

    def next_token_loss(self, lm: Mapping[str, Tensor]) -> Tensor:
        """(), unweighted; lm as in forward."""
        lm = trimmed(lm)
        if not self._head_is_checked:
            check_output_head(self.model, lm["input_ids"])
            self._head_is_checked = True
        names = ("input_ids", "attention_mask", "position_ids")
        inputs = {name: lm[name] for name in names if name in lm}
        hidden = hidden_states_at(self.model, -1, **inputs)
        head = output_head(self.model)
        return language_model_loss(
            hidden,
            head.weight,
            lm["labels"],
            bias=head.bias,
            scale=head.scale,
            softcap=head.softcap,
            group=self.group,
        )


def _check_batch(name: str, batch: Any, entries: tuple[str, ...]) -> None:
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
