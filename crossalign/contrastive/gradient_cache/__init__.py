"""GradientCache: batches larger than an encoder's memory, embedded in chunks."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from crossalign.contrastive.gradient_cache.cache import GradientCache
else:
    from crossalign import lazy_names

    __getattr__, __dir__ = lazy_names(__name__, {"GradientCache": "cache"})

__all__ = ["GradientCache"]
