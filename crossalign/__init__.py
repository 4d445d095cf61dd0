"""crossalign: fused contrastive kernels and a training loop that align a model's languages."""

from __future__ import annotations

from typing import TYPE_CHECKING

from crossalign.version import __version__ as __version__

if TYPE_CHECKING:
    from crossalign.alignment.model import AlignmentModel, AlignmentOutput
    from crossalign.build_report import build_info, extension_available
    from crossalign.contrastive.gradient_cache import GradientCache
    from crossalign.contrastive.loss import ContrastiveLoss, fused_contrastive_loss
    from crossalign.contrastive.sigmoid.loss import fused_sigmoid_loss
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
else:
    import importlib

    # Where each public name lives; test_public_api compares this with the imports above. A module
    # is loaded when its name is first asked for (PEP 562): the command line answers --help and
    # wrong arguments without PyTorch.
    _HOMES = {
        "AlignmentModel": "alignment.model",
        "AlignmentOutput": "alignment.model",
        "ContrastiveLoss": "contrastive.loss",
        "ContrastiveStats": "contrastive.terms",
        "GradientCache": "contrastive.gradient_cache",
        "build_info": "build_report",
        "build_items": "data.builders",
        "encode": "models.encode",
        "extension_available": "build_report",
        "fused_contrastive_loss": "contrastive.loss",
        "fused_sigmoid_loss": "contrastive.sigmoid.loss",
        "gather_negatives": "distributed.gather",
        "hidden_states_at": "models.encode",
        "last_token_pool": "pooling.functions",
        "masked_max_pool": "pooling.functions",
        "masked_mean_pool": "pooling.functions",
        "mean_pool_varlen": "pooling.functions",
        "pool": "pooling.functions",
    }

    def __getattr__(name):
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
        globals()[name] = value
        return value

    def __dir__():
        return sorted({*globals(), *__all__})


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
    "fused_sigmoid_loss",
    "gather_negatives",
    "hidden_states_at",
    "last_token_pool",
    "masked_max_pool",
    "masked_mean_pool",
    "mean_pool_varlen",
    "pool",
]
