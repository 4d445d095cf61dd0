"""Embeddings and agreement across the ranks of a process group."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from crossalign.distributed.gather import extension_status, gather_negatives, load_extension
else:
    from crossalign import lazy_names

    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "extension_status": "gather",
            "gather_negatives": "gather",
            "load_extension": "gather",
        },
    )

__all__ = [
    "extension_status",
    "gather_negatives",
    "load_extension",
]
