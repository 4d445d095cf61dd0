"""The pairwise sigmoid loss: function, checks, ops, chunked PyTorch passes, the loss over ranks."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from crossalign.contrastive.sigmoid.loss import fused_sigmoid_loss
else:
    from crossalign import lazy_names

    __getattr__, __dir__ = lazy_names(__name__, {"fused_sigmoid_loss": "loss"})

__all__ = ["fused_sigmoid_loss"]
