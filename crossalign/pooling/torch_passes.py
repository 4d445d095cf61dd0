"""Mean pooling in plain PyTorch: for CPU, float64, and without Triton.

The same promise as the kernels: tokens of weight 0 are never looked at, hidden is never copied
whole. Shapes: B sentences, T tokens, C features; rows (B, C) are the gradients of each sentence's
weighted sum, in the accumulator dtype.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import torch
from torch import Tensor

from crossalign.precision import accumulator

# Elements that are converted at a time.
CHUNK_ELEMENTS = 2**22


def masked_sums(hidden: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """(B, T, C), (B, T) -> weighted sums (B, C) and the sums of the weights (B,)."""
    weights = mask.to(accumulator(hidden.dtype))
    sums = hidden.new_zeros(hidden.shape[0], hidden.shape[2], dtype=weights.dtype)
    spans = _spans(weights) if hidden.device.type == "cpu" else None
    if spans is not None:
        _sum_each((row[span] for row, span in zip(hidden, spans, strict=True)), sums)
        return sums, weights.sum(dim=1)
    for tokens in _chunks(hidden.shape[1], sums.numel()):
        tile, weight = hidden[:, tokens].to(weights.dtype), weights[:, tokens, None]
        sums += torch.where(weight != 0, weight * tile, 0).sum(dim=1)
    return sums, weights.sum(dim=1)


def _spans(weights: Tensor) -> list[slice] | None:
    """Each sentence's tokens, if those are in a row and weigh 1: as padding leaves them."""
    if weights.numel() == 0:
        return None
    first = (weights != 0).int().argmax(dim=1)
    last = first + weights.sum(dim=1).to(first.dtype)
    place = torch.arange(weights.shape[1])
    is_inside = (place >= first[:, None]) & (place < last[:, None])
    if not torch.equal(is_inside.to(weights.dtype), weights):
        return None
    return [slice(*bounds) for bounds in zip(first.tolist(), last.tolist(), strict=True)]


def _sum_each(sentences: Iterable[Tensor], sums: Tensor) -> None:
    """One sum after the other: reads no padding, and adds many tokens pairwise."""
    for sentence, total in zip(sentences, sums, strict=True):
        torch.sum(sentence, 0, dtype=sums.dtype, out=total)


def masked_gradient(rows: Tensor, mask: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, T, C) gradient of hidden."""
    weights = mask.to(rows.dtype)
    grad_hidden = rows.new_empty(*mask.shape, rows.shape[1], dtype=dtype)
    # Only then is 0 * row everywhere 0. Asking a GPU would stall the host.
    is_finite = rows.device.type == "cpu" and bool(rows.isfinite().all())
    for tokens in _chunks(mask.shape[1], rows.numel()):
        weight, grad_tile = weights[:, tokens, None], grad_hidden[:, tokens]
        if not is_finite:
            grad_tile.copy_(torch.where(weight != 0, weight * rows[:, None], 0))
        elif dtype == rows.dtype:
            torch.mul(weight, rows[:, None], out=grad_tile)
        else:
            grad_tile.copy_(weight * rows[:, None])
    return grad_hidden


def varlen_sums(hidden: Tensor, cu_seqlens: Tensor) -> tuple[Tensor, Tensor]:
    """(total, C), (B + 1,) -> sums (B, C) and numbers of tokens (B,)."""
    lengths = cu_seqlens.diff().to(accumulator(hidden.dtype))
    sums = hidden.new_zeros(lengths.shape[0], hidden.shape[1], dtype=lengths.dtype)
    if hidden.device.type == "cpu":
        bounds = cu_seqlens.tolist()
        _sum_each((hidden[slice(*ends)] for ends in itertools.pairwise(bounds)), sums)
    elif sums.numel() and hidden.numel():
        for features in _chunks(hidden.shape[1], hidden.shape[0]):
            # float64, because it adds one token after the other; unsafe, because its own check of
            # the offsets would wait for the device.
            tile = hidden[:, features].double()
            sums[:, features] = torch.segment_reduce(
                tile, "sum", offsets=cu_seqlens, axis=0, unsafe=True
            ).to(sums.dtype)
    return sums, lengths


def varlen_gradient(
    rows: Tensor, cu_seqlens: Tensor, num_tokens: int, dtype: torch.dtype
) -> Tensor:
    """(num_tokens, C) gradient of hidden."""
    # One row more, of zeros, for tokens after the last sentence.
    rows = torch.nn.functional.pad(rows.to(dtype), (0, 0, 0, 1))
    lengths = cu_seqlens.diff(append=cu_seqlens.new_full((1,), num_tokens))
    return rows.repeat_interleave(lengths, dim=0, output_size=num_tokens)


def _chunks(size: int, elements_each: int) -> list[slice]:
    step = max(1, CHUNK_ELEMENTS // max(1, elements_each))
    return [slice(start, start + step) for start in range(0, size, step)]
