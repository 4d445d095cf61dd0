"""Dense plain PyTorch twins of the fused ops: the specification, in tests and benchmarks only.

Every function takes `compute_dtype`: float64 gives the truth, float32 the plain result that the
error rule calibrates on. Nothing here saves memory or time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from crossalign.reference.contrastive import contrastive_loss
    from crossalign.reference.pooling import masked_mean_pool, mean_pool_varlen, unit_length
    from crossalign.reference.sigmoid import sigmoid_loss
else:
    from crossalign import lazy_names

    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "contrastive_loss": "contrastive",
            "masked_mean_pool": "pooling",
            "mean_pool_varlen": "pooling",
            "sigmoid_loss": "sigmoid",
            "unit_length": "pooling",
        },
    )

__all__ = [
    "contrastive_loss",
    "masked_mean_pool",
    "mean_pool_varlen",
    "sigmoid_loss",
    "unit_length",
]
