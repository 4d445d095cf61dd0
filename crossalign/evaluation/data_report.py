"""What a folder of task files holds, without a model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from crossalign.evaluation.tasks.files import read_split
from crossalign.evaluation.tasks.items import TASKS, Split
from crossalign.evaluation.tasks.release import MissingFileError
from crossalign.evaluation.translation import FLORES_CODES, read_flores
from crossalign.files.text import DataError


def report_data(
    data: Path, tasks: Sequence[str], languages: Sequence[str] | None = None
) -> tuple[str, list[str]]:
    """A line for each task, language and split that is there, and one for what is not.

    Returns:
        The lines, and what is wrong with files that are cut off or malformed.

    Raises:
        DataError: there is no such folder.
    """
    if not data.is_dir():
        raise DataError(f"{data}: no such folder")
    lines, bad = [], []
    for task in tasks:
        has = TASKS[task].languages if task in TASKS else tuple(FLORES_CODES)
        absent = []
        for language in has if languages is None else [each for each in languages if each in has]:
            for split in ("test", "demos"):
                if (task, split) in (("xwinograd", "demos"), ("flores", "demos")):
                    continue
                try:
                    lines.append(_line(data, task, language, split))
                except MissingFileError:
                    absent.append(f"{language} {split}")
                except DataError as error:
                    bad.append(str(error))
        if absent:
            lines.append(f"{task:12} not there: {', '.join(absent)}")
    return "\n".join(lines), bad


def _line(data: Path, task: str, language: str, split: str) -> str:
    if task == "flores":
        path, sentences = read_flores(data, language)
        return f"{task:12} {language:3} devtest {len(sentences):6} sentences  {path}"
    found: Split = read_split(data, task, language, split)
    release = TASKS[task].release_rows.get(split, found.rows)
    notes = [f"{name} {value}" for name, value in found.notes.items() if value]
    rows = f"of {found.rows} rows" + ("" if found.rows == release else f" (release: {release})")
    shown = f"{task:12} {language:3} {split:7} {len(found.items):6} items {rows}"
    return "  ".join([shown, *notes, *found.files])
