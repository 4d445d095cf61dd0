"""The finished parts of an evaluation, on the disk as they come, so that a stopped one goes on.

One JSON object a line: first what the evaluation was asked, then one part each, with its record and
its items. Numbers read back are the very ones that were written.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from crossalign.files.output import path_of_full_disk
from crossalign.files.text import DataError

Row = dict[str, Any]


class FinishedParts:
    """The parts in one file, which a line that was not written whole ends.

    Args:
        path: of the file.
        asked: what the parts depend on, plain values.
        resume: go on with the parts that are there.

    Raises:
        ValueError: with resume, the parts were asked for something else.
        DataError: with resume, the file is not of this kind.
    """

    def __init__(self, path: Path, asked: Mapping[str, Any], *, resume: bool) -> None:
        self.path, self._asked = path, dict(asked)
        self._parts: dict[str, tuple[Row, list[Row]]] = {}
        self._size = 0  # bytes of whole lines
        if resume and path.exists():
            self._read()

    def __len__(self) -> int:
        return len(self._parts)

    def of(self, model: str) -> PartsOfModel:
        """Those of one of the models that are evaluated."""
        return PartsOfModel(self, model)

    def get(self, key: Mapping[str, Any]) -> tuple[Row, list[Row]] | None:
        """The record and the items of a part; None where it is not finished."""
        return self._parts.get(_text(key))

    def add(self, key: Mapping[str, Any], record: Row, items: list[Row]) -> None:
        """Keeps a part; it is on the disk when this returns."""
        self._parts[_text(key)] = record, items
        if not self._size:
            self._append(self._asked)
        self._append({"key": dict(key), "record": record, "items": items})

    def remove(self) -> None:
        """When the results have their own files."""
        self.path.unlink(missing_ok=True)

    def _append(self, row: Row) -> None:
        line = (json.dumps(row, ensure_ascii=False) + "\n").encode()
        with path_of_full_disk(self.path), open(self.path, "ab") as file:
            file.truncate(self._size)  # less a line that a killed process left half
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        self._size += len(line)

    def _read(self) -> None:
        lines = self.path.read_bytes().split(b"\n")[:-1]  # what is behind the last is half a line
        for number, line in enumerate(lines, start=1):
            try:
                row = json.loads(line)
                if number == 1:
                    self._check_same(row)
                else:
                    self._parts[_text(row["key"])] = row["record"], row["items"]
            except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError) as error:
                raise DataError(
                    f"{self.path}:{number}: is no part of an evaluation; add --overwrite in place "
                    "of --resume to begin anew"
                ) from error
            self._size += len(line) + 1

    def _check_same(self, was: Any) -> None:
        now = json.loads(json.dumps(self._asked))
        for name in [*now, *(each for each in was if each not in now)]:
            if was.get(name) != now.get(name):
                raise ValueError(
                    f"{self.path}: the stopped evaluation had {name} {was.get(name)!r}, this one "
                    f"has {now.get(name)!r}; give the same, or --overwrite in place of --resume to "
                    "begin anew"
                )


class PartsOfModel:
    """The parts of one model: get and add, as of FinishedParts."""

    def __init__(self, parts: FinishedParts, model: str) -> None:
        self._parts, self._model = parts, {"model": model}

    def get(self, key: Mapping[str, Any]) -> tuple[Row, list[Row]] | None:
        return self._parts.get({**self._model, **key})

    def add(self, key: Mapping[str, Any], record: Row, items: list[Row]) -> None:
        self._parts.add({**self._model, **key}, record, items)


def _text(key: Mapping[str, Any]) -> str:
    return json.dumps(key, sort_keys=True)
