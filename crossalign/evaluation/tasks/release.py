"""Release files of tasks: where they may be, whether they are whole, and their rows.

A folder of data may hold the releases as they were unpacked, or each task's files in a folder of
the task's name. Every file may be packed (.gz). It may be a part whose name says so, as
test_2k.first1000.tsv does; then it must have that many rows.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from crossalign.files.text import DataError, read_lines


class MissingFileError(DataError):
    """A task file that is not in the folder."""


def find_file(data: Path, folders: Sequence[str], names: Sequence[str]) -> Path | None:
    """The first of the files that is there: whole before packed before a part of it.

    Raises:
        DataError: two parts of a file are there.
    """
    for folder in folders:
        for name in names:
            stem, dot, ending = name.rpartition(".")
            for pattern in (name, f"{name}.gz", f"{stem}.first*{dot}{ending}"):
                found = sorted((data / folder).glob(pattern))
                if "*" in pattern:
                    found += sorted((data / folder).glob(f"{pattern}.gz"))
                if len(found) > 1:
                    raise DataError(f"several parts of one file: {', '.join(map(str, found))}")
                if found:
                    return found[0]
    return None


def need_file(data: Path, folders: Sequence[str], names: Sequence[str]) -> Path:
    """find_file, or an error that says where was looked."""
    path = find_file(data, folders, names)
    if path is None:
        raise MissingFileError(
            f"{data}: no file {' or '.join(names)} (or .gz) in any of its folders "
            f"{', '.join(folders)}"
        )
    return path


def check_rows(path: Path, rows: int) -> None:
    """A part such as test.first1000.tsv has the rows that its name says."""
    part = re.search(r"\.first(\d+)\.", path.name)
    if part and int(part[1]) != rows:
        raise DataError(f"{path}:{rows}: cut off: {rows} rows, the name says {part[1]}")


def read_rows(path: Path, columns: int | None = None) -> list[tuple[str, list[str]]]:
    """("path:line", cells) of each line; the number of cells must be that of `columns`."""
    rows = []
    for number, line in enumerate(read_lines(path), start=1):
        cells = line.split("\t")
        if columns is not None and len(cells) != columns:
            raise DataError(f"{path}:{number}: {columns} columns expected, got {len(cells)}")
        rows.append((f"{path}:{number}", cells))
    return rows


def read_table(path: Path, wanted: Sequence[str]) -> list[tuple[str, Mapping[str, str]]]:
    """("path:line", column -> cell) of each line below the header, which must have `wanted`."""
    (where, header), *rows = read_rows(path)
    missing = [name for name in wanted if name not in header]
    if missing:
        raise DataError(f"{where}: the header lacks the column {', '.join(missing)}")
    if not rows:
        raise DataError(f"{path}:1: cut off: no rows below the header")
    for where, cells in rows:
        if len(cells) != len(header):
            raise DataError(f"{where}: {len(header)} columns expected, got {len(cells)}")
    check_rows(path, len(rows))
    return [(where, dict(zip(header, cells, strict=True))) for where, cells in rows]


def number_of(value: str, allowed: Sequence[str], name: str, where: str) -> int:
    """The place of a label among those allowed."""
    if value not in allowed:
        raise DataError(f"{where}: {name} must be one of {', '.join(allowed)}, got {value!r}")
    return allowed.index(value)
