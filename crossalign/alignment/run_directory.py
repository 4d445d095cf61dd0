"""Training into a directory: settings, metrics step by step, checkpoints, stopping and resuming."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import IO, Any

from crossalign.alignment import checkpoint
from crossalign.alignment.periodic_evaluation import PeriodicEvaluation
from crossalign.alignment.progress import peak_memory_gib
from crossalign.alignment.run_config import RunConfig
from crossalign.alignment.trackers import Trackers
from crossalign.alignment.train import AlignmentRun, NotFiniteError, Record
from crossalign.build_report import build_info
from crossalign.files.text import DataError, read_lines, write_whole

METRICS_FILE = "metrics.jsonl"
EVALUATIONS_FILE = "evaluations.jsonl"
SETTINGS_FILE = "config.yaml"
ENVIRONMENT_FILE = "environment.json"
TRACKERS_FOLDER = "trackers"
# What a resumed run may change; a new number of steps gives the rest of the run a new schedule.
CHANGEABLE = (
    *("steps", "device", "chunk_size", "lm_chunk_size", "gradient_checkpointing", "save_every"),
    *("keep_last", "best_metric", "trackers", "allow_untested", "cache"),
)


def check_output(directory: Path, *, resume: bool) -> None:
    """A new run needs a directory that is absent or empty, a resumed one what a run wrote.

    Raises:
        DataError: it is otherwise.
    """
    if resume and not (directory / SETTINGS_FILE).is_file():
        raise DataError(f"{directory}: holds no {SETTINGS_FILE}, so there is no run to resume")
    if not resume and directory.exists():
        if not directory.is_dir():
            raise DataError(f"{directory}: is not a directory")
        if any(directory.iterdir()):
            raise DataError(
                f"{directory}: is not empty; name another --output, or --resume the run in it"
            )


def check_unchanged(stored: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Raises ValueError if a resumed run would change more of the stored one than CHANGEABLE."""
    for name, value in settings.items():
        if name not in CHANGEABLE and stored.get(name) != value:
            raise ValueError(
                f"{name} is {value!r}, but the run to resume has {stored.get(name)!r}; only "
                f"{', '.join(CHANGEABLE)} may change"
            )


def train_into(
    directory: Path,
    run: AlignmentRun,
    settings: Mapping[str, Any],
    run_config: RunConfig,
    evaluation: PeriodicEvaluation | None,
    *,
    resume: bool,
) -> None:
    """Runs to the end, or to SIGINT or SIGTERM, saving every so often and then.

    A failure before the first checkpoint leaves nothing behind; a later one leaves the last one,
    and the model of it in the directory.

    Args:
        directory: as check_output wants it.
        run: fresh; a resumed one takes its state from the directory's last checkpoint.
        settings: plain values for config.yaml.
        run_config: when to save, evaluate and report.
        evaluation: of run_config; None without evaluate_every.
        resume: go on from the last checkpoint, or from the beginning if the run has none yet.
    """
    if resume and checkpoint.steps_of(directory):
        checkpoint.load(directory, run)
        if run.step > run.config.steps:
            raise ValueError(f"steps is {run.config.steps}, but the run has made {run.step}")
    existed = directory.exists()
    writer = RunWriter(directory, run, run_config, evaluation)
    try:
        if run.engine.is_main:
            directory.mkdir(parents=True, exist_ok=True)
            _write_records(directory, settings, run.step)
        writer.train(settings)
    except BaseException:
        if run.engine.is_main and not checkpoint.steps_of(directory):
            _remove_traces(directory, existed)
        raise


def _write_records(directory: Path, settings: Mapping[str, Any], step: int) -> None:
    """config.yaml, environment.json, and the metrics as they were after `step`."""
    import yaml

    checkpoint.remove_abandoned(directory)
    write_whole(directory / SETTINGS_FILE, yaml.safe_dump(dict(settings), sort_keys=False))
    write_whole(directory / ENVIRONMENT_FILE, json.dumps(build_info(), indent=2) + "\n")
    for name in (METRICS_FILE, EVALUATIONS_FILE):
        earlier = _records_until(directory / name, step)
        if earlier or name == METRICS_FILE:
            write_whole(directory / name, "".join(f"{line}\n" for line in earlier))
        else:
            (directory / name).unlink(missing_ok=True)


def _records_until(path: Path, step: int) -> list[str]:
    """The lines of steps up to this one: a killed run has more, and perhaps half of one."""
    if step == 0 or not path.exists() or path.stat().st_size == 0:
        return []
    kept = []
    for line in read_lines(path):
        with contextlib.suppress(json.JSONDecodeError):
            if json.loads(line)["step"] <= step:
                kept.append(line)
    return kept


def _remove_traces(directory: Path, existed: bool) -> None:
    for name in (METRICS_FILE, EVALUATIONS_FILE, SETTINGS_FILE, ENVIRONMENT_FILE):
        (directory / name).unlink(missing_ok=True)
    for name in (checkpoint.FOLDER, TRACKERS_FOLDER):
        shutil.rmtree(directory / name, ignore_errors=True)
    if not existed:
        directory.rmdir()


class RunWriter:
    """Trains, and writes what comes of it: records, evaluations, checkpoints, reports."""

    def __init__(
        self,
        directory: Path,
        run: AlignmentRun,
        config: RunConfig,
        evaluation: PeriodicEvaluation | None,
    ) -> None:
        self.directory, self.run, self.config = directory, run, config
        self.evaluation = evaluation

    def train(self, settings: Mapping[str, Any]) -> None:
        run, config = self.run, self.config
        names = config.trackers if run.engine.is_main else ()
        with (
            _stop_request() as stop,
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
                    self._save()
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
            steps = checkpoint.steps_of(self.directory)
            last = checkpoint.path_of(self.directory, steps[-1]) if steps else "none yet"
            raise NotFiniteError(f"{error}; last good checkpoint: {last}") from error

    def _write(self, metrics: IO[str] | None, record: Record) -> None:
        if metrics is None:
            return
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
            with open(self.directory / EVALUATIONS_FILE, "a", encoding="utf-8") as file:
                file.write(json.dumps({"step": self.run.step, **scores}) + "\n")
            self.trackers.log(scores, self.run.step)
        metric = self.config.best_metric
        is_best = metric is not None and all(scores[metric] > each for each in earlier.values())
        return self.run.engine.any(is_best and self.run.engine.is_main and self.run.step > 0)

    def _scores(self) -> dict[int, float]:
        """best_metric by step, of the evaluations after some training."""
        path, metric = self.directory / EVALUATIONS_FILE, self.config.best_metric
        if metric is None or not path.exists():
            return {}
        records = map(json.loads, read_lines(path))
        return {each["step"]: each[metric] for each in records if each["step"] > 0}

    def _save(self) -> None:
        checkpoint.save(self.directory, self.run)
        self._tidy()

    def _tidy(self) -> None:
        """The model of the best checkpoint, or without best_metric of the newest, becomes that of
        the directory; checkpoints that are neither new nor best go."""
        steps = checkpoint.steps_of(self.directory) if self.run.engine.is_main else []
        if not steps:
            return
        scores = {step: score for step, score in self._scores().items() if step in steps}
        # Of equals the earlier: the order is that of the steps.
        best = max(scores, key=lambda step: scores[step]) if scores else steps[-1]
        checkpoint.publish(self.directory, best)
        checkpoint.prune(self.directory, {*steps[-self.config.keep_last :], best})


_COUNTED = ("pairs", "tokens")


@contextlib.contextmanager
def _stop_request() -> Iterator[threading.Event]:
    """An event that the first SIGINT or SIGTERM sets; the second one does what it always did."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # only the main thread may set handlers
        return
    earlier = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in earlier.items():
            signal.signal(number, handler)

    def request(number: int, frame: FrameType | None) -> None:
        stop.set()
        restore()

    for number in earlier:
        signal.signal(number, request)
    try:
        yield stop
    finally:
        restore()
