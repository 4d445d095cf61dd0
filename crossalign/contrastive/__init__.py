"""The contrastive loss: options, sums, losses, gradients, in PyTorch and over Triton kernels."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from crossalign.contrastive.gradient_cache import GradientCache
    from crossalign.contrastive.loss import fused_contrastive_loss
    from crossalign.contrastive.matryoshka import MatryoshkaLoss
    from crossalign.contrastive.module import ContrastiveLoss
    from crossalign.contrastive.negative_queue import NegativeQueue
    from crossalign.contrastive.terms import ContrastiveStats
else:
    from crossalign import lazy_names

    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "ContrastiveLoss": "module",
            "ContrastiveStats": "terms",
            "GradientCache": "gradient_cache",
            "MatryoshkaLoss": "matryoshka",
            "NegativeQueue": "negative_queue",
            "fused_contrastive_loss": "loss",
        },
    )

__all__ = [
    "ContrastiveLoss",
    "ContrastiveStats",
    "GradientCache",
    "MatryoshkaLoss",
    "NegativeQueue",
    "fused_contrastive_loss",
]
