"""What a type checker sees of the public functions: `make lint` checks it, and test_types.py does.

A comment that ignores an error is itself an error where there is none.
"""

from __future__ import annotations

from typing import assert_type

import torch
from torch import Tensor, nn

from crossalign import (
    AlignmentModel,
    ContrastiveLoss,
    ContrastiveStats,
    GradientCache,
    MatryoshkaLoss,
    NegativeQueue,
    fused_contrastive_loss,
    fused_sigmoid_loss,
    gather_negatives,
    masked_mean_pool,
    pool,
)

x = torch.ones(2, 3)


def right() -> None:
    assert_type(fused_contrastive_loss(x, x), Tensor)
    assert_type(fused_contrastive_loss(x, x, reduction="sum", gather="ring"), Tensor)
    both = fused_contrastive_loss(x, x, return_stats=True)
    assert_type(both, tuple[Tensor, ContrastiveStats])
    assert_type(both[1].accuracy, Tensor)
    assert_type(fused_sigmoid_loss(x, x, temperature=0.1, bias=-10.0), Tensor)
    assert_type(gather_negatives(x, None, backend="collective"), Tensor)
    assert_type(masked_mean_pool(x[None], x[:1]), Tensor)
    assert_type(pool(x[None], x[:1], "last"), Tensor)


def right_modules(loss: ContrastiveLoss, model: AlignmentModel, side: dict[str, Tensor]) -> None:
    assert_type(loss(x, x), Tensor)
    assert_type(ContrastiveLoss(0.1, symmetric=True)(x, x, ids=x[:, 0].long()), Tensor)
    with_stats = ContrastiveLoss(learn_temperature=True, return_stats=True)
    assert_type(with_stats(x, x), tuple[Tensor, ContrastiveStats])
    assert_type(MatryoshkaLoss(loss, [2, 3])(x, x), Tensor)
    assert_type(MatryoshkaLoss(with_stats, [2, 3])(x, x), tuple[Tensor, ContrastiveStats])
    assert_type(MatryoshkaLoss(fused_sigmoid_loss, [2])(x, x, temperature=0.1, bias=0.0), Tensor)
    output = model(side, side)
    assert_type(output.loss, Tensor)
    assert_type(output.stats, ContrastiveStats)
    cache = GradientCache(nn.Linear(3, 3), loss, 2)
    assert_type(cache(x, x), Tensor)
    assert_type(cache.backward(x, x), Tensor)
    assert_type(NegativeQueue(4).negatives, Tensor | None)


def wrong() -> None:
    fused_contrastive_loss(x, x, reduction="avg")  # type: ignore[call-overload]
    fused_contrastive_loss(x, x, same_id="drop")  # type: ignore[call-overload]
    fused_contrastive_loss(x, x, group="world")  # type: ignore[call-overload]
    fused_contrastive_loss(x, x, temprature=0.1)  # type: ignore[call-overload]
    fused_sigmoid_loss(x, x, temperature=0.1, bias=0.0, reduction="avg")  # type: ignore[arg-type]
    ContrastiveLoss(reduction="avg")  # type: ignore[call-overload]
    ContrastiveLoss()(x, x, temperature=0.1)  # type: ignore[call-arg]
    ContrastiveLoss(return_stats=True)(x, x).backward()  # type: ignore[attr-defined]
    pool(x[None], x[:1], "median")  # type: ignore[arg-type]
    gather_negatives(x, backend="nccl")  # type: ignore[arg-type]
