"""Does a run of `crossalign align` survive every fault that can be made to happen?

Each file of the newest checkpoint and of the run is cut, emptied and has one bit flipped; the disk
is full from each call that changes a file on; the process is killed at random moments and at random
calls inside the writing of a checkpoint. Then the run is resumed, and must end with the bits of a
run to which nothing happened.

    python -m benchmarks.faults.measure            # all faults, some minutes on two CPU cores
    python -m benchmarks.faults.measure --quick    # every eighth call, 3 kills

It needs Linux and a C compiler.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.faults.injection import (
    Done,
    call,
    import_what_commands_need,
    restart_with_library,
)
from benchmarks.faults.tiny_run import (
    SAVE_EVERY,
    STEPS,
    TinyRun,
    copied,
    outcome,
    whole_checkpoints,
)
from benchmarks.provenance import provenance, result_path

Row = dict[str, Any]
LONG = 30  # steps of a run that is killed
KILLS, KILLS_INSIDE = 30, 10


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flip(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "cut": cut,
    "emptied": lambda content: b"",
    "one bit flipped": flip,
}


class Faults:
    """The faults, one row each. A row is right where the run went on to the same end, or where the
    message names a file and the way out and the run then went on to the same end."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.run = folder, TinyRun(folder)
        self.straight = folder / "straight"
        self._must(self._align(self.straight))
        self.expected = outcome(self.straight)

    def damaged_files(self) -> Iterator[Row]:
        """Files of the newest checkpoint and of the run itself, which is then resumed."""
        newest = Path("checkpoints") / f"step-{STEPS}"
        folders = {"newest checkpoint": newest, "run": Path()}
        for where, inner in folders.items():
            names = sorted(p.name for p in (self.straight / inner).iterdir() if p.is_file())
            for name in names:
                for damage, change in DAMAGES.items():
                    directory = copied(self.straight, self.folder / "out")
                    path = directory / inner / name
                    path.write_bytes(change(path.read_bytes()))
                    done = self._align(directory, "--resume")
                    row = self._told(done, directory, path)
                    if done.status != 0:
                        self._follow_advice(directory, done)
                        done = self._align(directory, "--resume")
                    end = self._end(directory, done, (name,) if name.endswith(".jsonl") else ())
                    fault = {"fault": "damaged file", "where": where, "file": name}
                    yield {**fault, "damage": damage, **row, **end}

    def full_disk(self, first: int = 1, step: int = 1) -> Iterator[Row]:
        """From every call on that changes a file, while a run goes on from its first checkpoint."""
        half = copied(self.straight, self.folder / "half")
        shutil.rmtree(half / "checkpoints" / f"step-{STEPS}")
        num_calls = self._align(copied(half, self.folder / "out"), "--resume").calls
        for at in range(first, num_calls + 1, step):
            directory = copied(half, self.folder / "out")
            done = self._align(directory, "--resume", at=at)
            row = self._told(done, directory, None)
            kept = whole_checkpoints(directory)
            row["kept"] = SAVE_EVERY in kept or STEPS in kept
            end = self._end(directory, self._align(directory, "--resume"))
            yield {"fault": "full disk", "where": f"call {at} of {num_calls}", **row, **end}

    def kills(self, kills: int, inside: int) -> Iterator[Row]:
        """SIGKILL at random moments, and at random calls of the writing of a checkpoint."""
        straight, draw = self.folder / "long", random.Random(0)
        started = time.perf_counter()
        done = self._must(self._align(straight, steps=LONG))
        seconds, self.expected = time.perf_counter() - started, outcome(straight)
        directory = self.folder / "out"
        shutil.rmtree(directory, ignore_errors=True)
        number = 0
        while number < kills:
            is_inside = number < inside
            resume = ["--resume"] if (directory / "config.yaml").exists() else []
            watched = directory / "checkpoints" if is_inside else directory
            options: dict[str, Any] = {"kill_after_s": draw.uniform(0, seconds)}
            if is_inside:
                options = {"at": draw.randint(1, done.calls // LONG * SAVE_EVERY), "kills": True}
            killed = self._align(directory, *resume, steps=LONG, watched=watched, **options)
            steps = whole_checkpoints(directory)
            if killed.status == 0 or not (directory / "config.yaml").exists():
                shutil.rmtree(directory, ignore_errors=True)
            if killed.status == 0:  # it ended before the moment came: no kill, and moments too late
                seconds *= 0.9
                continue
            number += 1
            row = {"fault": "kill", "where": "inside a checkpoint" if is_inside else "any moment"}
            yield {**row, "status": killed.status, "message": "", "checkpoints": steps}
        resume = ["--resume"] if (directory / "config.yaml").exists() else []
        last = self._align(directory, *resume, steps=LONG)
        yield {"fault": "kill", "where": "after all of them", **self._end(directory, last)}

    def _align(
        self, output: Path, *flags: object, steps: int = STEPS, watched: Path | None = None,
        **options: Any,
    ) -> Done:  # fmt: skip
        command = self.run.align(output, *flags, steps=steps)
        return call(command, watched or output, self.folder, **options)

    def _must(self, done: Done) -> Done:
        if done.status != 0:
            raise SystemExit(f"the run without a fault failed: {done.error}")
        return done

    def _told(self, done: Done, directory: Path, path: Path | None) -> Row:
        """What was said: whether it is one line an event, and names the file, or any of the run."""
        named = str(path) if path is not None else str(directory)
        return {
            "status": done.status,
            "message": done.error.replace(str(self.folder), "").strip(),
            "names_file": named in done.error,
            "traceback": "Traceback" in done.error,
        }

    def _follow_advice(self, directory: Path, done: Done) -> None:
        """What the messages say: copy a file that a checkpoint has."""
        if "copy it to" in done.error:
            copy = done.error.split("; ")[-1].split(" holds the settings")[0]
            shutil.copy(copy, directory / "config.yaml")

    def _end(self, directory: Path, done: Done, damaged: tuple[str, ...] = ()) -> Row:
        """Whether the run ended as the one without a fault; but for records that were damaged."""
        found = outcome(directory)
        same = {name for name, value in found.items() if value == self.expected[name]}
        return {
            "resumed": done.status,
            "resumed_message": done.error.replace(str(self.folder), "").strip(),
            "same_end": same | set(damaged) == set(self.expected),
            "left_over": sorted(p.name for p in directory.rglob(".saving.*")),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a few faults of each kind")
    kinds = ("damage", "disk", "kills")
    parser.add_argument("--only", choices=kinds, help="one kind of fault")
    parser.add_argument("--half", type=int, choices=(1, 2), help="of the calls of a full disk")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="faults-") as name:
        restart_with_library(Path(name))
        import_what_commands_need()
        torch.set_num_threads(1)
        run = {"subject": "faults", **provenance(torch.device("cpu"))}
        faults = Faults(Path(name))
        calls = (1, 8) if arguments.quick else (arguments.half or 1, 2 if arguments.half else 1)
        faults_of = {
            "damage": lambda: faults.damaged_files(),
            "disk": lambda: faults.full_disk(*calls),
            "kills": lambda: faults.kills(*((3, 2) if arguments.quick else (KILLS, KILLS_INSIDE))),
        }
        path = result_path("faults", run)
        with open(path, "w") as file:
            for kind, rows in faults_of.items():
                if arguments.only in (None, kind):
                    for row in rows():
                        file.write(json.dumps({"run": run, **row}) + "\n")
                        file.flush()  # what was measured stays if this is stopped
                        print(json.dumps(row), flush=True)
        print(f"wrote {path}")


if __name__ == "__main__":
    main()
