"""16-bit embeddings across ranks: a gradient is summed in float32 and rounded once."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from crossalign import fused_contrastive_loss, fused_sigmoid_loss, reference
from tests.support.process_group import run_ranks

ROWS, RANKS, WIDTH = 16, 3, 24


def batch() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(ROWS * RANKS, WIDTH, generator=generator).bfloat16().float() for _ in range(2)
    ]


def gradients(rank: int) -> list[list[Tensor]]:
    """Of query and key, by schedule: first the contrastive, then the sigmoid loss."""
    mine = [x[rank * ROWS : (rank + 1) * ROWS].bfloat16().requires_grad_() for x in batch()]
    found = []
    for gather in ("all_gather", "ring"):
        options: Any = {"group": dist.group.WORLD, "gather": gather, "reduction": "sum"}
        losses = (
            fused_contrastive_loss(*mine, temperature=0.5, symmetric=True, **options),
            fused_sigmoid_loss(*mine, temperature=0.5, bias=-1.0, **options),
        )
        found += [list(torch.autograd.grad(loss, mine)) for loss in losses]
    return found


def test_each_gradient_is_within_one_rounding_of_the_truth() -> None:
    """Each rank's part was rounded to bfloat16 before the sum: 1.4 to 1.6 times one rounding."""
    whole = [x.double().requires_grad_() for x in batch()]
    contrastive, _ = reference.contrastive_loss(
        *whole, temperature=0.5, symmetric=True, reduction="sum"
    )
    sigmoid = reference.sigmoid_loss(*whole, temperature=0.5, bias=-1.0, reduction="sum")
    truths = [torch.autograd.grad(loss, whole) for loss in (contrastive, sigmoid)] * 2
    by_rank = run_ranks(gradients, RANKS)
    one_rounding = torch.finfo(torch.bfloat16).eps / 2
    for schedule, truth in enumerate(truths):
        for side, expected in enumerate(truth):
            got = torch.cat([found[schedule][side] for found in by_rank]).double() / RANKS
            # RANKS is no power of two: what was rounded is RANKS times the gradient.
            error = (got - expected).abs()
            float32_noise = 1e-5 * expected.abs().amax()
            assert (error <= one_rounding * expected.abs() + float32_noise).all(), (schedule, side)
