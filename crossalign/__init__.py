"""crossalign: fused contrastive kernels and a training loop that align a model's languages."""

from __future__ import annotations

from typing import TYPE_CHECKING

from crossalign.version import __version__ as __version__

if TYPE_CHECKING:
    from crossalign.alignment.model import AlignmentModel, AlignmentOutput
    from crossalign.build_report import build_info, extension_available
    from crossalign.contrastive.gradient_cache import GradientCache
    from crossalign.contrastive.loss import fused_contrastive_loss
    from crossalign.contrastive.matryoshka import MatryoshkaLoss
    from crossalign.contrastive.module import ContrastiveLoss
    from crossalign.contrastive.negative_queue import NegativeQueue
    from crossalign.contrastive.sigmoid.loss import fused_sigmoid_loss
    from crossalign.contrastive.terms import ContrastiveStats
    from crossalign.data.builders import build_items
    from crossalign.distributed.gather import gather_negatives
    from crossalign.models.encode import encode
    from crossalign.models.hidden_states import hidden_states_at
    from crossalign.pooling.functions import (
        last_token_pool,
        masked_max_pool,
        masked_mean_pool,
        mean_pool_varlen,
        pool,
    )
else:
    import importlib
    import sys

    def lazy_names(package, homes):
        """__getattr__ and __dir__ of a package whose public names load their module when first
        asked for (PEP 562). homes: name -> module, relative to the package."""

        def load(name):
            if name not in homes:
                raise AttributeError(f"module {package!r} has no attribute {name!r}")
            try:
                module = importlib.import_module(f"{package}.{homes[name]}")
            except ModuleNotFoundError as error:
                from crossalign.optional_modules import named_extra

                explained = named_extra(error, f"{package}.{name}")
                if explained is None:
                    raise
                raise explained from error
            value = getattr(module, name)
            vars(sys.modules[package])[name] = value
            return value

        return load, lambda: sorted({*vars(sys.modules[package]), *homes})

    # Where each public name lives; test_public_api compares this with the imports above. So the
    # command line answers --help and wrong arguments without PyTorch.
    _HOMES = {
        "AlignmentModel": "alignment.model",
        "AlignmentOutput": "alignment.model",
        "ContrastiveLoss": "contrastive.module",
        "ContrastiveStats": "contrastive.terms",
        "GradientCache": "contrastive.gradient_cache",
        "MatryoshkaLoss": "contrastive.matryoshka",
        "NegativeQueue": "contrastive.negative_queue",
        "build_info": "build_report",
        "build_items": "data.builders",
        "encode": "models.encode",
        "extension_available": "build_report",
        "fused_contrastive_loss": "contrastive.loss",
        "fused_sigmoid_loss": "contrastive.sigmoid.loss",
        "gather_negatives": "distributed.gather",
        "hidden_states_at": "models.hidden_states",
        "last_token_pool": "pooling.functions",
        "masked_max_pool": "pooling.functions",
        "masked_mean_pool": "pooling.functions",
        "mean_pool_varlen": "pooling.functions",
        "pool": "pooling.functions",
    }

    __getattr__, __dir__ = lazy_names(__name__, _HOMES)


__all__ = [
    "AlignmentModel",
    "AlignmentOutput",
    "ContrastiveLoss",
    "ContrastiveStats",
    "GradientCache",
    "MatryoshkaLoss",
    "NegativeQueue",
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
