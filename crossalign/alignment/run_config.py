"""The settings of a run's directory: what is saved, measured and reported, and when."""

from __future__ import annotations

from dataclasses import dataclass

from crossalign.settings import SettingError, check_settings, setting

SETTINGS_FILE = "config.yaml"  # in the run's directory, and in each checkpoint
METRICS = ("retrieval_accuracy", "task_accuracy")
TRACKERS = ("tensorboard", "wandb")

_CHECKPOINTS, _EVALUATION = "checkpoints and reports", "evaluation on the way"


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What `crossalign align` writes beside training; none of it changes an update.

    Raises:
        TypeError: a setting of the wrong type.
        ValueError: a setting out of its range, or one that needs another.
    """

    save_every: int = setting(500, "steps between two checkpoints", group=_CHECKPOINTS, lowest=1)
    keep_last: int = setting(2, "newest checkpoints that are kept", group=_CHECKPOINTS, lowest=1)
    best_metric: str | None = setting(
        None,
        "keep the checkpoint that is best by this too, and leave its model in --output; None = "
        "leave the newest",
        group=_CHECKPOINTS,
        choices=METRICS,
    )
    evaluate_every: int | None = setting(
        None, "steps between two evaluations; None = none", group=_EVALUATION, lowest=1
    )
    evaluate_pairs: tuple[str, ...] = setting(
        (),
        "held-out pairs for retrieval_accuracy, in files as --pairs takes them",
        group=_EVALUATION,
        metavar="FILE",
    )
    evaluate_tasks: tuple[str, ...] = setting(
        (),
        "tasks of `crossalign evaluate` for task_accuracy, zero-shot",
        group=_EVALUATION,
        metavar="TASK",
    )
    evaluate_languages: tuple[str, ...] = setting(
        (), "languages of these tasks", group=_EVALUATION, metavar="CODE"
    )
    evaluate_data: str | None = setting(
        None, "folder of these tasks' data", group=_EVALUATION, metavar="DIR"
    )
    evaluate_limit: int | None = setting(
        None,
        "examples of each task and language, and held-out pairs; None = all",
        group=_EVALUATION,
        lowest=1,
    )
    trackers: tuple[str, ...] = setting(
        (), "also report to these, in DIR/trackers", group=_CHECKPOINTS, choices=TRACKERS
    )

    def __post_init__(self) -> None:
        check_settings(self)
        has_data = bool(self.evaluate_pairs or self.evaluate_tasks)
        if has_data != (self.evaluate_every is not None):
            raise SettingError(
                "evaluate_every and one of evaluate_pairs and evaluate_tasks need each other",
                *("evaluate_every", "evaluate_pairs", "evaluate_tasks"),
            )
        if self.evaluate_tasks and not (self.evaluate_languages and self.evaluate_data):
            raise SettingError(
                "evaluate_tasks needs evaluate_languages and evaluate_data",
                *("evaluate_tasks", "evaluate_languages", "evaluate_data"),
            )
        source = {"retrieval_accuracy": "evaluate_pairs", "task_accuracy": "evaluate_tasks"}
        if self.best_metric and not getattr(self, source[self.best_metric]):
            needed = source[self.best_metric]
            message = f"best_metric {self.best_metric} needs {needed}"
            raise SettingError(message, "best_metric", needed)
