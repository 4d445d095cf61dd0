"""The settings of a run's directory: what is saved, measured and reported, and when."""

from __future__ import annotations

from dataclasses import dataclass

from crossalign.alignment.config import Several, check_lowest, check_types, setting

METRICS = ("retrieval_accuracy", "task_accuracy")
TRACKERS = ("tensorboard", "wandb")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What `crossalign align` writes beside training; none of it changes an update.

    Raises:
        TypeError: a setting of the wrong type.
        ValueError: a setting out of its range, or one that needs another.
    """

    save_every: int = setting(500, "steps between two checkpoints", metavar="N")
    keep_last: int = setting(2, "newest checkpoints that are kept", metavar="K")
    best_metric: str | None = setting(
        None,
        "keep the checkpoint that is best by this too, and leave its model in --output",
        choices=METRICS,
    )
    evaluate_every: int | None = setting(
        None, "steps between two evaluations; None = none", metavar="N"
    )
    evaluate_pairs: tuple[str, ...] = setting(
        (),
        "held-out pairs for retrieval_accuracy, in files as --pairs takes them",
        nargs="+",
        action=Several,
        metavar="FILE",
    )
    evaluate_tasks: tuple[str, ...] = setting(
        (),
        "tasks of `crossalign evaluate` for task_accuracy, zero-shot",
        nargs="+",
        action=Several,
        metavar="TASK",
    )
    evaluate_languages: tuple[str, ...] = setting(
        (), "languages of these tasks", nargs="+", action=Several, metavar="CODE"
    )
    evaluate_data: str | None = setting(None, "folder of these tasks' data", metavar="DIR")
    evaluate_limit: int | None = setting(
        None, "examples of each task and language, and held-out pairs; None = all", metavar="N"
    )
    trackers: tuple[str, ...] = setting(
        (), "also report to these, in DIR/trackers", nargs="+", action=Several, choices=TRACKERS
    )

    def __post_init__(self) -> None:
        check_types(self)
        lowest = {"save_every": 1, "keep_last": 1, "evaluate_every": 1, "evaluate_limit": 1}
        check_lowest(self, lowest)
        unknown = [name for name in self.trackers if name not in TRACKERS]
        if unknown:
            raise ValueError(f"trackers must be of {', '.join(TRACKERS)}, got {unknown[0]!r}")
        if self.best_metric not in (None, *METRICS):
            raise ValueError(
                f"best_metric must be one of {', '.join(METRICS)}, got {self.best_metric!r}"
            )
        has_data = bool(self.evaluate_pairs or self.evaluate_tasks)
        if has_data != (self.evaluate_every is not None):
            raise ValueError(
                "evaluate_every and one of evaluate_pairs and evaluate_tasks need each other"
            )
        if self.evaluate_tasks and not (self.evaluate_languages and self.evaluate_data):
            raise ValueError("evaluate_tasks needs evaluate_languages and evaluate_data")
        source = {"retrieval_accuracy": "evaluate_pairs", "task_accuracy": "evaluate_tasks"}
        if self.best_metric and not getattr(self, source[self.best_metric]):
            raise ValueError(f"best_metric {self.best_metric} needs {source[self.best_metric]}")
