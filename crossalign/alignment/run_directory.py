"""Training into a directory: settings, metrics step by step, checkpoints, stopping and resuming."""

from __future__ import annotations

import contextlib
import json
import signal
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

from crossalign.alignment import checkpoint
from crossalign.alignment.train import AlignmentRun
from crossalign.build_report import build_info
from crossalign.text_files import DataError, read_lines, write_whole

METRICS_FILE = "metrics.jsonl"
SETTINGS_FILE = "config.yaml"
ENVIRONMENT_FILE = "environment.json"
# What a resumed run may change; a new number of steps gives the rest of the run a new schedule.
CHANGEABLE = ("steps", "save_every", "device", "chunk_size")


def read_settings(path: Path) -> dict[str, Any]:
    """The mapping of a YAML file, its keys with "_" for "-".

    Raises:
        DataError: the file cannot be read or is no mapping.
    """
    import yaml

    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(settings, dict):
        raise DataError(f"{path}: must map settings to values, got {type(settings).__name__}")
    return {str(key).replace("-", "_"): value for key, value in settings.items()}


def check_output(directory: Path, *, resume: bool) -> None:
    """A new run needs a directory that is absent or empty, a resumed one a saved state.

    Raises:
        DataError: it is otherwise.
    """
    if resume and not (directory / checkpoint.STATE_FILE).is_file():
        raise DataError(
            f"{directory}: holds no {checkpoint.STATE_FILE}, so there is none to resume"
        )
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
    *,
    save_every: int,
    resume: bool,
) -> None:
    """Runs to the end, or to SIGINT or SIGTERM, saving every so often and then.

    A failure before the first save leaves nothing behind; a later one leaves the last save.

    Args:
        directory: as check_output wants it.
        run: fresh; a resumed one takes its state from the directory.
        settings: plain values for config.yaml.
        save_every: steps between two saves.
        resume: go on from the directory's state.
    """
    if resume:
        checkpoint.load(directory, run)
        if run.step > run.config.steps:
            raise ValueError(f"steps is {run.config.steps}, but the run has made {run.step}")
    existed = directory.exists()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        _write_records(directory, settings, run.step)
        _train(directory, run, save_every)
    except BaseException:
        if not (directory / checkpoint.STATE_FILE).exists():
            for name in (METRICS_FILE, SETTINGS_FILE, ENVIRONMENT_FILE):
                (directory / name).unlink(missing_ok=True)
            if not existed:
                directory.rmdir()
        raise


def _write_records(directory: Path, settings: Mapping[str, Any], step: int) -> None:
    """config.yaml, environment.json, and metrics.jsonl as it was after `step`."""
    import yaml

    write_whole(directory / SETTINGS_FILE, yaml.safe_dump(dict(settings), sort_keys=False))
    write_whole(directory / ENVIRONMENT_FILE, json.dumps(build_info(), indent=2) + "\n")
    metrics = directory / METRICS_FILE
    earlier = read_lines(metrics)[:step] if step else []  # a line a step; a killed run has more
    write_whole(metrics, "".join(f"{line}\n" for line in earlier))


def _train(directory: Path, run: AlignmentRun, save_every: int) -> None:
    with (
        _stop_request() as stop,
        open(directory / METRICS_FILE, "a", encoding="utf-8") as metrics,
        contextlib.closing(run.steps(progress=True)) as records,
    ):
        for record in records:
            metrics.write(json.dumps(record) + "\n")
            metrics.flush()
            is_last = stop.is_set() or run.step == run.config.steps
            if is_last or run.step % save_every == 0:
                checkpoint.save(directory, run)
            if stop.is_set():
                break


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
