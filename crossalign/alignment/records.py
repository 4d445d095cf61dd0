"""metrics.jsonl and evaluations.jsonl of a run that goes on: what was written up to a step."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from crossalign.files.output import write_whole

METRICS_FILE = "metrics.jsonl"
EVALUATIONS_FILE = "evaluations.jsonl"

logger = logging.getLogger("crossalign")


def written(directory: Path) -> dict[str, Any]:
    """Size and SHA-256 of both files, as far as they are there."""
    found = {}
    for name in (METRICS_FILE, EVALUATIONS_FILE):
        if (directory / name).is_file():
            content = (directory / name).read_bytes()
            found[name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    return found


def keep_until(directory: Path, step: int, recorded: Mapping[str, Any] | None = None) -> None:
    """Cuts both files after the lines of this step; a killed run has more, and perhaps half of one.

    A line that is no record, a step without one, and a file that does not begin with what `written`
    recorded at this step are named, and the file as it was is kept beside the new one.
    """
    for name in (METRICS_FILE, EVALUATIONS_FILE):
        path = directory / name
        kept, foreign = _records_until(path, step)
        steps = {json.loads(line)["step"] for line in kept}
        missing = sorted(set(range(1, step + 1)) - steps) if name == METRICS_FILE else []
        told = [f"line {foreign[0]} is no record of a step"] if foreign else []
        told += [f"the record of step {missing[0]} is missing"] if missing else []
        if not told and _has_changed(path, (recorded or {}).get(name)):
            told = ["not what was written, by SHA-256"]
        if told:
            count = len(foreign) + len(missing)
            more = f" ({count} such faults)" if count > 1 else ""
            logger.warning(
                "%s: damaged: %s%s; the run goes on without, and %s",
                *(path, " and ".join(told), more, _kept_copy(path)),
            )
        if kept or name == METRICS_FILE:
            write_whole(path, "".join(f"{line}\n" for line in kept))
        else:
            path.unlink(missing_ok=True)


def scores_by_step(directory: Path, metric: str) -> dict[int, float]:
    """A metric of the evaluations after some training."""
    kept, _ = _records_until(directory / EVALUATIONS_FILE, None)
    records = map(json.loads, kept)
    return {each["step"]: each[metric] for each in records if each["step"] > 0 and metric in each}


def _has_changed(path: Path, recorded: Mapping[str, Any] | None) -> bool:
    """Whether the file does not begin with the bytes that it had."""
    if recorded is None:
        return False
    try:
        with open(path, "rb") as file:
            content = file.read(recorded["bytes"])
    except OSError:
        return True
    return hashlib.sha256(content).hexdigest() != str(recorded["sha256"])


def _kept_copy(path: Path) -> str:
    """What became of a damaged file, for the message; an earlier copy of one stays."""
    if not path.exists():
        return "it is gone"
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
