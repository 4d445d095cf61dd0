"""liger-kernel's fused linear cross-entropy, for the next-token loss on a GPU.

It keeps one chunk of tokens' logits, in the dtype of the hidden states, and forms the gradients in
the forward pass: three products where the block walk of language_model_loss makes four.
"""

from __future__ import annotations

import importlib.util

import torch
from torch import Tensor

_DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def can_fuse(hidden: Tensor, scale: float) -> bool:
    """Whether the library is here and right for these: hidden (N, C) on a GPU, needing a gradient.

    It has no factor of the logits, and forms the weight's gradient along with that of the hidden
    states, or not at all.
    """
    return (
        hidden.is_cuda
        and hidden.dtype in _DTYPES
        and hidden.requires_grad
        and hidden.shape[0] > 0
        and scale == 1.0
        and importlib.util.find_spec("liger_kernel") is not None
    )


def fused_cross_entropy_sum(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, softcap: float | None
) -> Tensor:
    """() float32: sum over n of the cross-entropy of row n; hidden (N, C), weight (V, C)."""
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    total: Tensor = liger_fused_linear_cross_entropy(
        hidden,
        weight.to(hidden.dtype),
        targets,
        bias=None if bias is None else bias.to(hidden.dtype),
        reduction="sum",
        softcap=softcap,
        accum_dtype=torch.float32,
    )
    return total
