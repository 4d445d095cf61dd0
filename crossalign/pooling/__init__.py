"""Sentence vectors from token vectors."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from crossalign.pooling.functions import (
        last_token_pool,
        masked_max_pool,
        masked_mean_pool,
        mean_pool_varlen,
        pool,
    )
else:
    from crossalign import lazy_names

    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "last_token_pool": "functions",
            "masked_max_pool": "functions",
            "masked_mean_pool": "functions",
            "mean_pool_varlen": "functions",
            "pool": "functions",
        },
    )

__all__ = [
    "last_token_pool",
    "masked_max_pool",
    "masked_mean_pool",
    "mean_pool_varlen",
    "pool",
]
