"""Measuring whether languages came together."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from crossalign.evaluation.choice_scoring import Candidate, ChoiceScorer
    from crossalign.evaluation.in_context import (
        Evaluation,
        InContextSettings,
        evaluate_in_context,
        read_task_data,
    )
    from crossalign.evaluation.statistics import holm, mcnemar_exact, wilson_interval
    from crossalign.evaluation.summary import compare, summarize
    from crossalign.evaluation.tasks.items import TaskData
    from crossalign.evaluation.translation import TranslationSettings, evaluate_translation
else:
    from crossalign import lazy_names

    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "Candidate": "choice_scoring",
            "ChoiceScorer": "choice_scoring",
            "Evaluation": "in_context",
            "InContextSettings": "in_context",
            "TaskData": "tasks.items",
            "TranslationSettings": "translation",
            "compare": "summary",
            "evaluate_in_context": "in_context",
            "evaluate_translation": "translation",
            "holm": "statistics",
            "mcnemar_exact": "statistics",
            "read_task_data": "in_context",
            "summarize": "summary",
            "wilson_interval": "statistics",
        },
    )

__all__ = [
    "Candidate",
    "ChoiceScorer",
    "Evaluation",
    "InContextSettings",
    "TaskData",
    "TranslationSettings",
    "compare",
    "evaluate_in_context",
    "evaluate_translation",
    "holm",
    "mcnemar_exact",
    "read_task_data",
    "summarize",
    "wilson_interval",
]
