"""Sentence vectors without what they all share: the mean taken out, over every rank.

The states of a large model share one direction, so that the cosine of any two sentences is near 1;
what tells sentences apart is what remains without the mean.

Shapes: N queries, M keys, H hard negatives, C features, S = 1 or 2 means.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from crossalign.argument_checks import check_option
from crossalign.pooling.choices import CENTERS, Center
from crossalign.precision import accumulator


def center_vectors(
    query: Tensor,
    key: Tensor,
    negatives: Tensor | None = None,
    *,
    center: Center,
    group: dist.ProcessGroup | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The vectors of a batch minus a mean over all ranks, differentiated through.

    "batch" subtracts the mean of all vectors; "side" subtracts from queries their mean, and from
    keys and hard negatives, which are candidates beside the keys, the mean of both.

    Args:
        query, key, negatives: (N, C), (M, C), (H, C) of one dtype; a rank may have no rows.
        center: "none", "batch" or "side".
        group: over whose ranks the means go; every rank must call this.

    Returns:
        query, key, negatives; float32 where they were float16 or bfloat16 and are centered.

    Raises:
        ValueError: another center.

    Cost: one all-reduce of at most 2 * (C + 1) numbers forward, and of 2 * C backward.
    """
    check_option("center_vectors", "center", center, CENTERS)
    if center == "none":
        return query, key, negatives
    parts = [query, key] if negatives is None else [query, key, negatives]
    vectors = torch.cat([part.to(accumulator(part.dtype)) for part in parts])
    others = len(vectors) - len(query)
    sizes = [len(query), others] if center == "side" else [len(vectors)]
    centered: Tensor = _Centering.apply(vectors, sizes, group)  # type: ignore[no-untyped-call]
    query, key, *rest = torch.split(centered, [len(part) for part in parts])
    return query, key, rest[0] if rest else None


class _Centering(torch.autograd.Function):
    """The gradient of a mean over all ranks needs the sum of the gradients over all ranks."""

    @staticmethod
    def forward(
        ctx: Any, vectors: Tensor, sizes: list[int], group: dist.ProcessGroup | None
    ) -> Tensor:
        ones = vectors.new_ones(len(vectors), 1)
        sums = _sums(torch.cat([vectors, ones], dim=1), sizes, group)
        counts = sums[:, -1:].clamp_min(1)
        ctx.save_for_backward(counts)
        ctx.sizes, ctx.group = sizes, group
        return _minus(vectors, sizes, sums[:, :-1] / counts)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (counts,) = ctx.saved_tensors
        return _minus(grad, ctx.sizes, _sums(grad, ctx.sizes, ctx.group) / counts), None, None


def _sums(rows: Tensor, sizes: list[int], group: dist.ProcessGroup | None) -> Tensor:
    """(S, C) sum of each part of the rows, over all ranks."""
    sums = torch.stack([part.sum(dim=0) for part in torch.split(rows, sizes)])
    if group is not None:
        dist.all_reduce(sums, group=group)
    return sums


def _minus(rows: Tensor, sizes: list[int], means: Tensor) -> Tensor:
    parts = zip(torch.split(rows, sizes), means, strict=True)
    return torch.cat([part - mean for part, mean in parts])
