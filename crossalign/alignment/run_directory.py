"""Training into a directory: settings, metrics step by step, checkpoints, stopping and resuming."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from crossalign.alignment.checkpoint import FOLDER, Checkpoints
from crossalign.alignment.finite import NotFiniteError
from crossalign.alignment.periodic_evaluation import PeriodicEvaluation
from crossalign.alignment.progress import peak_memory_gib
from crossalign.alignment.records import (
    EVALUATIONS_FILE,
    METRICS_FILE,
    keep_until,
    scores_by_step,
)
from crossalign.alignment.run_config import SETTINGS_FILE, RunConfig
from crossalign.alignment.stop_request import stop_request
from crossalign.alignment.trackers import Trackers
from crossalign.alignment.train import AlignmentRun, Record
from crossalign.build_report import build_info
from crossalign.distributed.rank_agreement import MISSING, is_of_a_missing_rank, one_line
from crossalign.files.lock import LOCK_FILE
from crossalign.files.output import FULL, path_of_full_disk, write_whole
from crossalign.files.sealed import sealed
from crossalign.files.text import DataError

ENVIRONMENT_FILE = "environment.json"
TRACKERS_FOLDER = "trackers"
# What a resumed run may change; a new number of steps gives the rest of the run a new schedule.
CHANGEABLE = (
    *("steps", "device", "chunk_size", "lm_chunk_size", "gradient_checkpointing", "save_every"),
    *("keep_last", "best_metric", "trackers", "allow_untested", "cache"),
    # Paths; a checkpoint goes on with the same content only.
    *("pairs", "lm_data", "evaluate_pairs", "evaluate_data"),
)
_OF_ADAPTERS = "model"  # likewise, of a run that trains adapters of it


def check_output(directory: Path, *, resume: bool) -> None:
    """A new run needs a directory that is absent or empty, a resumed one what a run wrote.

    Raises:
        DataError: it is otherwise.
    """
    if resume and not (directory / SETTINGS_FILE).is_file():
        raise DataError(f"{directory}: holds no {SETTINGS_FILE}, so there is no run to resume")
    entries = {path.name for path in directory.iterdir()} if directory.exists() else set()
    if not resume and entries - {LOCK_FILE}:
        raise DataError(
            f"{directory}: is not empty; name another --output, or --resume the run in it"
        )


def check_unchanged(stored: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Raises ValueError if a resumed run would change more of the stored one than CHANGEABLE."""
    for name, value in settings.items():
        if name in CHANGEABLE or stored.get(name) == value:
            continue
        message = f"{name} is {value!r}, but the run to resume has {stored.get(name)!r}; "
        if name != _OF_ADAPTERS:
            raise ValueError(f"{message}only {', '.join(CHANGEABLE)} may change")
        if settings.get("lora_rank") is None:
            raise ValueError(
                f"{message}leave --model away: the weights are those of the last checkpoint"
            )


def train_into(
    checkpoints: Checkpoints,
    run: AlignmentRun,
    settings: Mapping[str, Any],
    run_config: RunConfig,
    evaluation: PeriodicEvaluation | None,
    *,
    resume: bool,
) -> None:
    """Runs to the end, or to SIGINT or SIGTERM, saving every so often and then.

    A failure before the first checkpoint leaves nothing of the run behind; a later one leaves the
    last one, and the model of it in the directory.

    Args:
        checkpoints: of a directory that is as check_output wants it.
        run: fresh; a resumed one takes its state from the last checkpoint.
        settings: plain values for config.yaml.
        run_config: when to save, evaluate and report.
        evaluation: of run_config; None without evaluate_every.
        resume: go on from the last checkpoint, or from the beginning if the run has none yet.
    """
    last = checkpoints.last() if resume else None
    if last is not None:
        _check_settings(checkpoints, last, settings)
        checkpoints.load(run, last)
        if run.step > run.config.steps:
            raise ValueError(f"steps is {run.config.steps}, but the run has made {run.step}")
    directory = checkpoints.directory
    writer = RunWriter(checkpoints, run, run_config, evaluation)
    try:
        if run.engine.is_main:
            directory.mkdir(parents=True, exist_ok=True)
            _write_records(checkpoints, settings, last)
        writer.train(settings)
    except BaseException as error:
        if run.engine.is_main and not checkpoints.steps():
            _remove_traces(directory)
        if isinstance(error, OSError) and error.errno in FULL:
            place = error.filename2 or error.filename or directory
            raise OSError(
                f"{place}: cannot be written: {error.strerror}; {_last_of(checkpoints)}; make "
                "room, then --resume"
            ) from error
        if run.engine.world_size > 1 and is_of_a_missing_rank(error):
            text = one_line(str(error))
            if MISSING not in text:
                text = f"{MISSING} come in time; look for its own error ({text})"
            raise RuntimeError(
                f"step {run.step + 1}: {text}; {_last_of(checkpoints)}; --resume goes on from there"
            ) from error
        raise


def _last_of(checkpoints: Checkpoints) -> str:
    steps = checkpoints.steps()
    last = f"the last complete one is {checkpoints.path(steps[-1])}" if steps else "none is there"
    return f"of the checkpoints {last}"


def _check_settings(checkpoints: Checkpoints, step: int, settings: Mapping[str, Any]) -> None:
    """A damaged config.yaml may still be valid YAML; the checkpoint has what the run began with."""
    import yaml

    copy = checkpoints.path(step) / SETTINGS_FILE
    if copy.is_file():
        try:
            check_unchanged(yaml.safe_load(copy.read_text(encoding="utf-8")), settings)
        except ValueError as error:
            path = checkpoints.directory / SETTINGS_FILE
            raise DataError(f"{path}: {error}; {copy} holds the settings of the run") from None


def _write_records(checkpoints: Checkpoints, settings: Mapping[str, Any], last: int | None) -> None:
    """config.yaml, environment.json, and the metrics as they were at the last checkpoint."""
    import yaml

    directory = checkpoints.directory
    checkpoints.remove_abandoned()
    lines: str = yaml.safe_dump(dict(settings), sort_keys=False)
    write_whole(directory / SETTINGS_FILE, sealed(lines))
    write_whole(directory / ENVIRONMENT_FILE, json.dumps(build_info(), indent=2) + "\n")
    keep_until(directory, last or 0, None if last is None else checkpoints.path(last))


def _remove_traces(directory: Path) -> None:
    """What a run without a checkpoint wrote. What another program put there stays, and no failure
    to remove takes the place of the error that ended the run."""
    for name in (METRICS_FILE, EVALUATIONS_FILE, SETTINGS_FILE, ENVIRONMENT_FILE):
        with contextlib.suppress(OSError):
            (directory / name).unlink()
    for name in (FOLDER, TRACKERS_FOLDER):
        shutil.rmtree(directory / name, ignore_errors=True)


class RunWriter:
    """Trains, and writes what comes of it: records, evaluations, checkpoints, reports."""

    def __init__(
        self,
        checkpoints: Checkpoints,
        run: AlignmentRun,
        config: RunConfig,
        evaluation: PeriodicEvaluation | None,
    ) -> None:
        self.checkpoints, self.directory = checkpoints, checkpoints.directory
        self.run, self.config, self.evaluation = run, config, evaluation

    def train(self, settings: Mapping[str, Any]) -> None:
        run, config = self.run, self.config
        names = config.trackers if run.engine.is_main else ()
        with (
            stop_request() as stop,
            contextlib.closing(
                Trackers(names, self.directory / TRACKERS_FOLDER, settings)
            ) as self.trackers,
            self._metrics() as metrics,
            contextlib.closing(run.steps(progress=True)) as records,
        ):
            if run.step == 0:
                self._evaluate()
            else:
                self._tidy()  # the run may have been killed between saving and this
            for record in self._finite(records):
                self._write(metrics, record)
                stops = run.engine.any(stop.is_set())
                is_last = stops or run.step == run.config.steps
                is_better = not stops and self._is_due(config.evaluate_every) and self._evaluate()
                if is_last or is_better or self._is_due(config.save_every):
                    self._save(metrics)
                if stops:
                    break

    def _is_due(self, every: int | None) -> bool:
        at_end = self.run.step == self.run.config.steps
        return every is not None and (at_end or self.run.step % every == 0)

    def _metrics(self) -> contextlib.AbstractContextManager[IO[str] | None]:
        if not self.run.engine.is_main:
            return contextlib.nullcontext()
        return open(self.directory / METRICS_FILE, "a", encoding="utf-8")

    def _finite(self, records: Iterator[Record]) -> Iterator[Record]:
        """The records; where a step is not finite, the error names the last checkpoint too."""
        try:
            yield from records
        except NotFiniteError as error:
            steps = self.checkpoints.steps()
            last = self.checkpoints.path(steps[-1]) if steps else "none yet"
            raise NotFiniteError(f"{error}; last good checkpoint: {last}") from error

    def _write(self, metrics: IO[str] | None, record: Record) -> None:
        if metrics is None:
            return
        with path_of_full_disk(self.directory / METRICS_FILE):
            metrics.write(json.dumps(record) + "\n")
            metrics.flush()
        shown = {name: value for name, value in record.items() if name != "step"}
        shown |= {f"{name}_per_second": record[name] / record["seconds"] for name in _COUNTED}
        shown["memory_gib"] = peak_memory_gib(self.run.device)
        self.trackers.log(shown, self.run.step)

    def _evaluate(self) -> bool:
        """Writes the scores of this step; whether they are the best by best_metric."""
        if self.evaluation is None:
            return False
        scores = self.evaluation(self.run)
        earlier = self._scores()
        if self.run.engine.is_main:
            path = self.directory / EVALUATIONS_FILE
            with path_of_full_disk(path), open(path, "a", encoding="utf-8") as file:
                file.write(json.dumps({"step": self.run.step, **scores}) + "\n")
            self.trackers.log(scores, self.run.step)
        metric = self.config.best_metric
        is_best = metric is not None and all(scores[metric] > each for each in earlier.values())
        return self.run.engine.any(is_best and self.run.engine.is_main and self.run.step > 0)

    def _scores(self) -> dict[int, float]:
        """best_metric by step; empty without best_metric."""
        metric = self.config.best_metric
        return {} if metric is None else scores_by_step(self.directory, metric)

    def _save(self, metrics: IO[str] | None) -> None:
        if metrics is not None:  # the records of a checkpoint's steps are on the disk before it is
            with path_of_full_disk(self.directory / METRICS_FILE):
                os.fsync(metrics.fileno())
        self.checkpoints.save(self.run)
        self._tidy()

    def _tidy(self) -> None:
        """The model of the best checkpoint, or without best_metric of the newest, becomes that of
        the directory; checkpoints that are neither new nor best go."""
        steps = self.checkpoints.steps() if self.run.engine.is_main else []
        if not steps:
            return
        scores = {step: score for step, score in self._scores().items() if step in steps}
        best = self.checkpoints.best(scores)
        self.checkpoints.publish(best)
        self.checkpoints.prune({*steps[-self.config.keep_last :], best})


_COUNTED = ("pairs", "tokens")
