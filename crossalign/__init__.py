"""crossalign: fused contrastive kernels and a training loop that align a model's languages."""

from crossalign.alignment.model import AlignmentModel, AlignmentOutput
from crossalign.build_report import build_info, extension_available
from crossalign.contrastive.gradient_cache import GradientCache
from crossalign.contrastive.loss import ContrastiveLoss, fused_contrastive_loss
from crossalign.contrastive.terms import ContrastiveStats
from crossalign.data.builders import build_items
from crossalign.distributed.gather import gather_negatives
from crossalign.models.encode import encode, hidden_states_at
from crossalign.pooling.functions import (
    last_token_pool,
    masked_max_pool,
    masked_mean_pool,
    mean_pool_varlen,
    pool,
)

__version__ = "0.1.0"

__all__ = [
    "AlignmentModel",
    "AlignmentOutput",
    "ContrastiveLoss",
    "ContrastiveStats",
    "GradientCache",
    "build_info",
    "build_items",
    "encode",
    "extension_available",
    "fused_contrastive_loss",
    "gather_negatives",
    "hidden_states_at",
    "last_token_pool",
    "masked_max_pool",
    "masked_mean_pool",
    "mean_pool_varlen",
    "pool",
]
