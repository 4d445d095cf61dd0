"""Aligning a causal language model: configuration, data, loop, checkpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from crossalign.alignment.config import TrainingConfig
    from crossalign.alignment.model import AlignmentModel, AlignmentOutput
    from crossalign.alignment.train import AlignmentRun, align
else:
    from crossalign import lazy_names

    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "AlignmentModel": "model",
            "AlignmentOutput": "model",
            "AlignmentRun": "train",
            "TrainingConfig": "config",
            "align": "train",
        },
    )

__all__ = [
    "AlignmentModel",
    "AlignmentOutput",
    "AlignmentRun",
    "TrainingConfig",
    "align",
]
