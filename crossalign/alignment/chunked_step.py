"""The gradients of a step in chunks: the same as at once, with the memory of one chunk."""

from __future__ import annotations

import torch
from torch import Tensor

from crossalign.alignment.alignment_model import AlignmentModel, AlignmentOutput
from crossalign.alignment.batches import StepBatch
from crossalign.alignment.language_model_loss import IGNORED_LABEL
from crossalign.contrastive_terms import ContrastiveStats
from crossalign.gradient_cache import GradientCache


def chunked_backward(model: AlignmentModel, batch: StepBatch, chunk_size: int) -> AlignmentOutput:
    """Leaves the gradients of the whole step; no more than chunk_size sequences run at a time.

    Returns:
        The losses and statistics of the whole step, without gradient.
    """
    owner = model.negative_owner(batch.source, batch.target, batch.negatives)
    results: list[tuple[Tensor, ContrastiveStats]] = []

    def loss(query: Tensor, key: Tensor, negatives: Tensor | None = None) -> Tensor:
        results.append(model.contrast(query, key, negatives, owner, ids=batch.ids))
        return model.contrastive_weight * results[0][0]

    cache = GradientCache(model.embed, loss, chunk_size)
    contrastive_part = cache.backward(batch.source, batch.target, batch.negatives)
    lm_loss = _chunked_lm_backward(model, batch, chunk_size)
    contrastive_loss, stats = results[0]
    joint = contrastive_part + model.lm_weight * lm_loss
    return AlignmentOutput(joint, contrastive_loss.detach(), lm_loss, stats)


def _chunked_lm_backward(model: AlignmentModel, batch: StepBatch, chunk_size: int) -> Tensor:
    """The mean over all labels, as each chunk's mean times its share of the labels."""
    total = torch.zeros((), device=batch.ids.device)
    if batch.lm is None:
        return total
    per_text = (batch.lm["labels"][:, 1:] != IGNORED_LABEL).sum(dim=1)
    for start in range(0, len(per_text), chunk_size):
        rows = slice(start, start + chunk_size)
        share = float(per_text[rows].sum() / per_text.sum())
        chunk = {name: tensor[rows] for name, tensor in batch.lm.items()}
        part = share * model.next_token_loss(chunk)
        with torch.autocast(total.device.type, enabled=False):
            torch.autograd.backward(model.lm_weight * part)
        total += part.detach()
    return total
