"""The choice tasks from a folder of their release files.

XNLI, PAWS-X and XStoryCloze are read here, XCOPA and XWinograd in modules of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from crossalign.evaluation.tasks.items import Item, Split, check_task_language
from crossalign.evaluation.tasks.release import (
    check_rows,
    need_file,
    number_of,
    read_rows,
    read_table,
)
from crossalign.evaluation.tasks.xcopa import read_xcopa
from crossalign.evaluation.tasks.xwinograd import read_xwinograd
from crossalign.files.text import DataError, checked_text

XNLI_LABELS = ("entailment", "neutral", "contradiction")
_XNLI_FOLDERS = ("xnli", "XNLI-1.0", "XNLI", ".")
_PAWSX_FOLDERS = ("pawsx", "x-final", "pawsx/x-final", "PAWS-X/x-final", "PAWS-X", ".")
_STORY_FOLDERS = ("xstorycloze", "xstory_cloze", "XStoryCloze", ".")
_STORY_FIELDS = {
    **{f"sentence{number}": f"InputSentence{number}" for number in range(1, 5)},
    **{f"ending{number}": f"RandomFifthSentenceQuiz{number}" for number in (1, 2)},
}


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
