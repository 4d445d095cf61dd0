"""Task files in their release formats: where they may lie, and the TSV ones read.

A folder of data may hold the releases as they were unpacked, or each task's files in a folder of
the task's name. Every file may be packed (.gz), and may be a part whose name says so, as
test_2k.first1000.tsv does, of which it must then have the rows.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from crossalign.evaluation.tasks.items import TASKS, Item, Split
from crossalign.files.text import DataError, checked_text, read_lines

XNLI_LABELS = ("entailment", "neutral", "contradiction")
_XNLI_FOLDERS = ("xnli", "XNLI-1.0", "XNLI", ".")
_PAWSX_FOLDERS = ("pawsx", "x-final", "pawsx/x-final", "PAWS-X/x-final", "PAWS-X", ".")
_STORY_FOLDERS = ("xstorycloze", "xstory_cloze", "XStoryCloze", ".")
_STORY_FIELDS = {
    **{f"sentence{number}": f"InputSentence{number}" for number in range(1, 5)},
    **{f"ending{number}": f"RandomFifthSentenceQuiz{number}" for number in (1, 2)},
}


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


def read_xnli(data: Path, language: str, split: str) -> Split:
    """Either dev-de.tsv, test-de.tsv and test-labels.tsv, or xnli.dev.tsv of all languages."""
    part = "test" if split == "test" else "dev"
    names = (f"{part}-{language}.tsv", f"xnli.{part}.tsv")
    path = need_file(data, _XNLI_FOLDERS, names)
    files = [path]
    if path.name.startswith("xnli."):
        wanted = ("language", "gold_label", "sentence1", "sentence2")
        table = [row for row in read_table(path, wanted) if row[1]["language"] == language]
        if not table:
            raise DataError(f'{path}: no row of the language "{language}"')
        rows = [(at, [cells[name] for name in (*wanted[2:], wanted[1])]) for at, cells in table]
    else:
        rows = read_rows(path)
        width = len(rows[0][1])
        if width not in (2, 3):
            raise DataError(f"{rows[0][0]}: 2 or 3 columns expected, got {width}")
        rows = read_rows(path, width)
        check_rows(path, len(rows))
        if width == 2:
            labels = need_file(data, _XNLI_FOLDERS, (f"{part}-labels.tsv",))
            files.append(labels)
            rows = _with_labels(path, rows, labels)
    items = [
        Item(
            row,
            str(row),
            {
                "premise": checked_text(cells[0], "premise", where),
                "hypothesis": checked_text(cells[1], "hypothesis", where),
            },
            number_of(cells[2], XNLI_LABELS, "label", where),
        )
        for row, (where, cells) in enumerate(rows)
    ]
    return Split(items, len(items), tuple(map(str, files)))


def _with_labels(
    path: Path, rows: list[tuple[str, list[str]]], labels: Path
) -> list[tuple[str, list[str]]]:
    """The third column from a file of genre and label, one row for each row of the sentences."""
    table = read_rows(labels, 2)
    if len(table) != len(rows):
        raise DataError(
            f"{path}:{len(rows)}: cut off, or other than its labels: {len(rows)} rows, but "
            f"{labels} has {len(table)}"
        )
    for where, (_, label) in table:
        number_of(label, XNLI_LABELS, "label", where)
    return [(at, [*cells, label]) for (at, cells), (_, (_, label)) in zip(rows, table, strict=True)]


def read_pawsx(data: Path, language: str, split: str) -> Split:
    """de/test_2k.tsv; rows whose sentence is the placeholder NS are left out and counted."""
    name = "test_2k.tsv" if split == "test" else "dev_2k.tsv"
    path = need_file(data, [f"{folder}/{language}" for folder in _PAWSX_FOLDERS], (name,))
    table = read_table(path, ("id", "sentence1", "sentence2", "label"))
    return pawsx_split([(at, row["id"], row) for at, row in table], (str(path),))


def pawsx_split(
    rows: Sequence[tuple[str, str, Mapping[str, str]]], files: tuple[str, ...]
) -> Split:
    """Items of ("where", id, row) of PAWS-X without those that were not translated."""
    items = []
    for row, (where, name, cells) in enumerate(rows):
        fields = {key: cells[key] for key in ("sentence1", "sentence2")}
        if "NS" in (value.strip() for value in fields.values()):
            continue
        for key, value in fields.items():
            checked_text(value, key, where)
        items.append(Item(row, name, fields, number_of(cells["label"], ("0", "1"), "label", where)))
    dropped = len(rows) - len(items)
    return Split(items, len(rows), files, {"dropped_NS_rows": dropped})


def read_xstorycloze(data: Path, language: str, split: str) -> Split:
    """spring2016.val.ru.tsv.split_20_80_eval.tsv, and _train.tsv for demonstrations."""
    part = "eval" if split == "test" else "train"
    name = f"spring2016.val.{language}.tsv.split_20_80_{part}.tsv"
    path = need_file(data, _STORY_FOLDERS, (name,))
    answer = "AnswerRightEnding"
    table = read_table(path, ("InputStoryid", *_STORY_FIELDS.values(), answer))
    items = [
        Item(
            row,
            checked_text(cells["InputStoryid"], "InputStoryid", where),
            {
                key: checked_text(cells[column], column, where)
                for key, column in _STORY_FIELDS.items()
            },
            number_of(cells[answer], ("1", "2"), answer, where),
        )
        for row, (where, cells) in enumerate(table)
    ]
    return Split(items, len(items), (str(path),))


def read_split(data: Path, task: str, language: str, split: str) -> Split:
    """Items of one task, language and split ("test" or "demos") from a folder of files.

    Raises:
        DataError: a file is missing, cut off or malformed; the message names it and the line.
        ValueError: the task has no such language.
    """
    from crossalign.evaluation.tasks.xcopa import read_xcopa
    from crossalign.evaluation.tasks.xwinograd import read_xwinograd

    readers: dict[str, Callable[[Path, str, str], Split]] = {
        "xnli": read_xnli,
        "pawsx": read_pawsx,
        "xcopa": read_xcopa,
        "xstorycloze": read_xstorycloze,
        "xwinograd": read_xwinograd,
    }
    check_task_language(task, language)
    if not data.is_dir():
        raise DataError(f"{data}: no such folder")
    return readers[task](data, language, split)


def check_task_language(task: str, language: str) -> None:
    if task not in TASKS:
        raise ValueError(f"tasks must be of {', '.join(TASKS)}, got {task!r}")
    if language not in TASKS[task].languages:
        known = " ".join(TASKS[task].languages)
        raise ValueError(f'{task} has no language "{language}"; it has {known}')
