"""Training data: translation pairs, instruction items, and the builders that make them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from crossalign.data.builders import TrainingItem, build_items
    from crossalign.data.check import check_items, check_pairs
    from crossalign.data.hub import HubPairs
    from crossalign.data.indexed_data import IndexedItems, IndexedPairs, open_items, open_pairs
    from crossalign.data.items import read_items
    from crossalign.data.pairs import Pair, read_pairs
else:
    from crossalign import lazy_names

    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "HubPairs": "hub",
            "IndexedItems": "indexed_data",
            "IndexedPairs": "indexed_data",
            "Pair": "pairs",
            "TrainingItem": "builders",
            "build_items": "builders",
            "check_items": "check",
            "check_pairs": "check",
            "open_items": "indexed_data",
            "open_pairs": "indexed_data",
            "read_items": "items",
            "read_pairs": "pairs",
        },
    )

__all__ = [
    "HubPairs",
    "IndexedItems",
    "IndexedPairs",
    "Pair",
    "TrainingItem",
    "build_items",
    "check_items",
    "check_pairs",
    "open_items",
    "open_pairs",
    "read_items",
    "read_pairs",
]
