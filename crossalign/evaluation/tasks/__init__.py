"""Evaluation tasks: items, release files, hub data sets and prompts."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from crossalign.evaluation.tasks.files import read_split
    from crossalign.evaluation.tasks.items import TASKS, Item, Split
else:
    from crossalign import lazy_names

    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "Item": "items",
            "Split": "items",
            "TASKS": "items",
            "read_split": "files",
        },
    )

__all__ = [
    "TASKS",
    "Item",
    "Split",
    "read_split",
]
