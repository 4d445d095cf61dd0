"""metrics.jsonl and evaluations.jsonl of a run that goes on: what was written up to a step."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

from crossalign.files.output import write_whole

METRICS_FILE = "metrics.jsonl"
EVALUATIONS_FILE = "evaluations.jsonl"

logger = logging.getLogger("crossalign")


def keep_until(directory: Path, step: int, saved: Path | None = None) -> None:
    """Cuts both files after the lines of this step; a killed run has more, and perhaps half of one.

    A file that does not begin with what the checkpoint of this step has of it is restored. A line
    that is no record, and a step without one, are named. The file as it was is then kept beside it.

    Args:
        directory: of the run.
        step: of the checkpoint that the run goes on from; 0 = from the beginning.
        saved: the folder of that checkpoint; None: nothing is restored.
    """
    for name in (METRICS_FILE, EVALUATIONS_FILE):
        path = directory / name
        kept, foreign = _records_until(path, step)
        steps = {json.loads(line)["step"] for line in kept}
        missing = sorted(set(range(1, step + 1)) - steps) if name == METRICS_FILE else []
        told = [f"line {foreign[0]} is no record of a step"] if foreign else []
        told += [f"the record of step {missing[0]} is missing"] if missing else []
        copy = saved / name if saved is not None and (saved / name).is_file() else None
        has_changed = copy is not None and not _begins_with(path, copy)
        told = told or (["not what was written"] if has_changed else [])
        if told:
            count = len(foreign) + len(missing)
            more = f" ({count} such faults)" if count > 1 else ""
            restored = f"it is restored from {copy}" if has_changed else "the run goes on without"
            before = _kept_copy(path)
            logger.warning(
                "%s: damaged: %s%s; %s, and %s", path, " and ".join(told), more, restored, before
            )
        if copy is not None and has_changed:
            kept, _ = _records_until(copy, step)
        if kept or name == METRICS_FILE:
            write_whole(path, "".join(f"{line}\n" for line in kept))
        else:
            path.unlink(missing_ok=True)


def scores_by_step(directory: Path, metric: str) -> dict[int, float]:
    """A metric of the evaluations after some training."""
    kept, _ = _records_until(directory / EVALUATIONS_FILE, None)
    records = map(json.loads, kept)
    return {each["step"]: each[metric] for each in records if each["step"] > 0 and metric in each}


def _begins_with(path: Path, copy: Path) -> bool:
    """Whether the file has the bytes of the copy, and perhaps more."""
    expected = copy.read_bytes()
    try:
        with open(path, "rb") as file:
            return file.read(len(expected)) == expected
    except OSError:
        return False


def _kept_copy(path: Path) -> str:
    """What became of a damaged file, for the message; an earlier copy of one stays."""
    if not path.exists():
        return "it was gone"
    taken = len(list(path.parent.glob(f"{path.name}.damaged*")))
    copy = path.with_name(f"{path.name}.damaged" + (f".{taken}" if taken else ""))
    shutil.copyfile(path, copy)
    return f"the file as it was is {copy}"


def _records_until(path: Path, step: int | None) -> tuple[list[str], list[int]]:
    """The records' lines, of equal steps the last; and the numbers of lines that are none."""
    if step == 0 or not path.exists():
        return [], []
    lines = path.read_bytes().split(b"\n")
    kept: dict[int, str] = {}
    foreign = []
    for number, line in enumerate(lines, start=1):
        found = _step_of(line)
        if found is None:
            if number < len(lines):  # the last may be half a line, or nothing
                foreign.append(number)
        elif step is None or found <= step:
            kept[found] = line.decode()
    return [kept[each] for each in sorted(kept)], foreign


def _step_of(line: bytes) -> int | None:
    try:
        record: Any = json.loads(line)
    except ValueError:  # UnicodeDecodeError is one
        return None
    step = record.get("step") if isinstance(record, dict) else None
    return step if type(step) is int else None
