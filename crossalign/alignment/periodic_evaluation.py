"""Evaluation of the model while it trains: retrieval of held-out pairs, and tasks in context."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from crossalign.alignment.run_config import RunConfig
from crossalign.alignment.train import AlignmentRun
from crossalign.data.pairs import Pair, read_pairs
from crossalign.evaluation.vectors.layer_embeddings import retrieval_by_layer

if TYPE_CHECKING:
    from crossalign.evaluation.in_context import InContextSettings
    from crossalign.evaluation.tasks.items import TaskData

Scores = dict[str, float]


class PeriodicEvaluation:
    """What --evaluate-pairs and --evaluate-tasks ask for, its data read and checked beforehand.

    Raises:
        DataError: data that cannot be used.
        ValueError: unknown tasks or languages.
    """

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.pairs: list[Pair] = []
        self.tasks: tuple[list[TaskData], InContextSettings] | None = None
        if config.evaluate_pairs:
            pairs = read_pairs([Path(path) for path in config.evaluate_pairs])
            self.pairs = pairs[: config.evaluate_limit]
        if config.evaluate_tasks:
            from crossalign.evaluation.in_context import InContextSettings, read_task_data

            settings = InContextSettings(
                tasks=config.evaluate_tasks,
                languages=config.evaluate_languages,
                too_long="skip",
                limit=config.evaluate_limit,
            )
            self.tasks = (read_task_data(settings, Path(str(config.evaluate_data))), settings)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of what is asked: the pairs, and the items of the tasks."""
        data = self.tasks[0] if self.tasks else []
        items = [
            (each.task, each.language, item.row, item.id, dict(item.fields), item.label)
            for each in data
            for item in each.test.items[: self.config.evaluate_limit]
        ]
        asked = json.dumps([self.pairs, items], sort_keys=True)
        return hashlib.sha256(asked.encode()).hexdigest()

    def __call__(self, run: AlignmentRun) -> Scores:
        """retrieval_accuracy and task_accuracy, with what they are means of. Every rank computes
        them, so that none waits beyond a timeout; nothing of the run is changed."""
        devices = [run.device] if run.device.type == "cuda" else []
        passes = run.engine.chunk_passes(run.passes)
        with torch.random.fork_rng(devices), torch.no_grad(), run.engine.autocast():
            scores: Scores = passes(lambda: {**self._retrieval(run), **self._tasks(run)})
        return scores

    def _retrieval(self, run: AlignmentRun) -> Scores:
        """Top-1 accuracy, the mean of both directions and of the aligned layers; of vectors made
        as the run makes them."""
        if not self.pairs:
            return {}
        rows = retrieval_by_layer(
            run.language_model,
            run.tokenizer,
            {
                "source": [pair.source for pair in self.pairs],
                "target": [pair.target for pair in self.pairs],
            },
            run.config.layers,
            pooling=run.config.pooling,
            pool_tokens=run.config.pool_tokens,
            center="batch" if run.config.center == "batch" else "side",
        )
        is_plain = run.config.center == "none"
        scores = [row.scores if is_plain else row.centered for row in rows]
        return {"retrieval_accuracy": sum(each.accuracy for each in scores) / len(scores)}

    def _tasks(self, run: AlignmentRun) -> Scores:
        """Zero-shot accuracy of each task and language, and their mean."""
        if self.tasks is None:
            return {}
        from crossalign.evaluation.in_context import evaluate_in_context

        data, settings = self.tasks
        records = evaluate_in_context(run.language_model, run.tokenizer, data, settings).records
        scores = {f"{each['task']}_{each['language']}": each["accuracy"] for each in records}
        return {**scores, "task_accuracy": sum(scores.values()) / len(scores)}
