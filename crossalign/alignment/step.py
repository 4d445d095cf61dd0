"""The gradients of a step in chunks: the same as at once, with the memory of one chunk.

The contrastive loss is one problem over all pairs (GradientCache), however small the chunks; the
next-token loss is a sum over chunks, divided by the labels of the whole step on all ranks.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from crossalign.alignment.batch_checks import pair_of_negatives
from crossalign.alignment.batches import Inputs, StepBatch
from crossalign.alignment.engines.one_process import Engine
from crossalign.alignment.model import AlignmentModel, AlignmentOutput
from crossalign.alignment.padding import LENGTHS, no_text
from crossalign.contrastive.gradient_cache import GradientCache
from crossalign.contrastive.terms import ContrastiveStats
from crossalign.models.next_token_loss import count_labels


def chunked_backward(
    alignment: AlignmentModel,
    passes: nn.Module,
    batch: StepBatch,
    engine: Engine,
    *,
    chunk_size: int | None,
    lm_chunk_size: int | None,
) -> AlignmentOutput:
    """Leaves the gradients of the whole step; no more than so many rows run at a time.

    Args:
        alignment: the losses.
        passes: the passes of alignment, as engine.prepare wrapped them.
        batch: of this rank, which may have fewer pairs or texts than another, or none.
        chunk_size: sentences in a pass; None: all.
        lm_chunk_size: rows of texts in a pass; None: all.

    Returns:
        The losses and statistics of the whole step, without gradient.
    """
    passes = engine.chunk_passes(passes)
    contrastive_loss, stats = _contrastive_backward(alignment, passes, batch, engine, chunk_size)
    lm_loss = torch.zeros_like(contrastive_loss)
    if batch.lm is not None:
        lm_loss = _lm_backward(alignment, passes, batch.lm, engine, lm_chunk_size)
    engine.average_gradients(each for each in alignment.parameters() if each.requires_grad)
    joint = alignment.contrastive_weight * contrastive_loss + alignment.lm_weight * lm_loss
    return AlignmentOutput(joint, contrastive_loss, lm_loss, stats)


def _contrastive_backward(
    alignment: AlignmentModel,
    passes: nn.Module,
    batch: StepBatch,
    engine: Engine,
    chunk_size: int | None,
) -> tuple[Tensor, ContrastiveStats]:
    sides = batch.source, batch.target, batch.negatives
    owner = pair_of_negatives(alignment.loss_options, *sides)
    rows = batch.num_pairs
    longest = engine.max_over_ranks(rows)
    results: list[tuple[Tensor, ContrastiveStats]] = []

    def loss(query: Tensor, key: Tensor, negatives: Tensor | None = None) -> Tensor:
        own = None if negatives is None else negatives[:rows]
        same = {"ids": batch.ids, "negative_ids": batch.negative_ids}
        results.append(alignment.contrast(query[:rows], key[:rows], own, owner, **same))
        return engine.scaler.scale(alignment.contrastive_weight * results[0][0])

    def embed(chunk: Inputs) -> Tensor:
        embedded: Tensor = passes("embed", chunk)
        return embedded

    sides = (batch.source, batch.target, batch.negatives)
    # The passes trim by lengths that the host knows; the cache would wait for the device.
    cache = GradientCache(embed, loss, chunk_size or max(longest, 1), trim=False)
    with engine.autocast():
        cache.backward(*(side and _lengthened(side, longest) for side in sides))
    contrastive_loss, stats = results[0]
    return contrastive_loss.detach(), stats


def _lm_backward(
    alignment: AlignmentModel, passes: nn.Module, lm: Inputs, engine: Engine, size: int | None
) -> Tensor:
    """The mean over all labels, as the sum of what each chunk adds to it."""
    count = count_labels(lm["labels"], engine.device, alignment.group)
    parts = []
    for chunk in _chunks(lm, engine, size):
        with engine.autocast():
            part = passes("next_token_loss", chunk, count)
        engine.backward(alignment.lm_weight * part)
        parts.append(part.detach())
    return torch.stack(parts).sum()


def _chunks(lm: Inputs, engine: Engine, size: int | None) -> Iterator[Inputs]:
    """The rows in passes of `size`, then passes without a text while another rank has more."""
    rows = len(lm["input_ids"])
    size = size or max(rows, 1)
    own = -(-rows // size)
    longest = engine.max_over_ranks(own)
    for start in range(0, rows, size):
        yield {name: tensor[start : start + size] for name, tensor in lm.items()}
    for _ in range(own, longest):
        yield no_text(engine.device)


def _lengthened(inputs: Inputs, rows: int) -> Inputs:
    """With rows of one token at the end, which the loss leaves out."""
    missing = rows - len(inputs["input_ids"])
    if missing <= 0:
        return inputs
    added = {name: tensor.new_zeros(missing, *tensor.shape[1:]) for name, tensor in inputs.items()}
    added["attention_mask"][:, 0] = 1
    added[LENGTHS] += 1
    return {name: torch.cat([tensor, added[name]]) for name, tensor in inputs.items()}
