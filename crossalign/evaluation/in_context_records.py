"""The records of an evaluation in context: what is kept of an item, the accuracy, the source."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from crossalign.evaluation.statistics import wilson_interval
from crossalign.evaluation.tasks.items import TASKS, Item, TaskData


def logged(
    key: Mapping[str, Any], item: Item, demos: Sequence[Item], scores: list[float]
) -> dict[str, Any]:
    prediction = max(range(len(scores)), key=scores.__getitem__)  # the first of equals
    return {
        **key,
        "id": item.id,
        "row": item.row,
        "label": item.label,
        "prediction": prediction,
        "correct": prediction == item.label,
        "log_probabilities": scores,
        "demonstrations": [demo.id for demo in demos],
    }


def accuracy(part: TaskData, log: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    correct, total = sum(each["correct"] for each in log), len(log)
    labels = Counter(each["label"] for each in log)
    low, high = wilson_interval(correct, total)
    chance = TASKS[part.task].chance
    return {
        "accuracy": correct / total,
        "correct": correct,
        "items": total,
        "interval": [low, high],
        "chance": chance,
        "above_chance": low > chance,
        "most_frequent_label": max(labels.values()) / total,
        "ties": sum(_is_tie(each["log_probabilities"]) for each in log),
    }


def _is_tie(scores: Sequence[float]) -> bool:
    """Such an item counts as an answer of the first choice, as in lm-eval."""
    return sorted(scores)[-1] == sorted(scores)[-2]


def source(part: TaskData) -> dict[str, Any]:
    """Where the items came from: files with their hashes, and what was done to their rows."""
    files = {}
    for split in (part.test, part.demos):
        for name in split.files if split else ():
            path = Path(name)
            hashed = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None
            files[name] = hashed
    whole = TASKS[part.task].release_rows.get("test", part.test.rows)
    return {
        "files_sha256": files,
        "license": TASKS[part.task].license,
        "rows": part.test.rows,
        "rows_of_release": whole,
        "notes": dict(part.test.notes),
        "demonstration_notes": dict(part.demos.notes) if part.demos else {},
    }
