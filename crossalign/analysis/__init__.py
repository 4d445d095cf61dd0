"""The shape of a model's representation space: measured, drawn and reported."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from crossalign.analysis.run import AnalysisResult, AnalysisSettings, analyze
else:
    from crossalign import lazy_names

    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "AnalysisResult": "run",
            "AnalysisSettings": "run",
            "analyze": "run",
        },
    )

__all__ = [
    "AnalysisResult",
    "AnalysisSettings",
    "analyze",
]
