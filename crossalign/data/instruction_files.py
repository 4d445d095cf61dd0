"""Instruction data: one file per language, records joined by id.

Layouts of a file, told by its name and content:

- Bactrian-X, .json (one list) or .jsonl: objects with id, instruction, input ("" or absent: none)
  and output.
- Seed tasks of Self-Instruct, .jsonl or .json: id, instruction and instances, a list of objects
  with input and output; the k-th instance from the second on has the id "<id>#k".
- SQuAD 1.1 (XQuAD, MLQA), .json: an object with data[].paragraphs[].context and
  .qas[].{id, question, answers[].text}. The question is the instruction, the paragraph the input,
  the first answer the output.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from crossalign.data.languages import LANGUAGE_NAMES
from crossalign.files.text import DataError, read_json, read_json_objects, text_field

ENDINGS = (".json", ".jsonl", ".json.gz", ".jsonl.gz")
Record = dict[str, str]  # id, instruction, input, output
Records = dict[str, list[Record]]  # language -> records


def read_records(directory: Path, languages: Sequence[str]) -> Records:
    """The records of each language's file, which is {language}.json, anything.{language}.json, or
    such a name in .jsonl, .json.gz or .jsonl.gz. A file is read whole.

    Raises:
        DataError: a file is missing or unusable; the message names file, position and reason.
    """
    records: Records = {}
    for language in languages:
        path = _file_of(directory, language)
        is_lines = path.name.removesuffix(".gz").endswith(".jsonl")
        rows = read_json_objects(path) if is_lines else _rows_of_json(path)
        records[language] = [record for where, row in rows for record in records_of(row, where)]
    return records


def keep_common_ids(records: Records) -> tuple[Records, dict[str, int]]:
    """The records whose ids are in every language, and how many of each language do not.

    Raises:
        DataError: there is none.
    """
    common = set.intersection(*({row["id"] for row in rows} for rows in records.values()))
    if not common:
        raise DataError(f"no id is in all of {', '.join(records)}; records are joined by id")
    kept = {
        language: [row for row in rows if row["id"] in common] for language, rows in records.items()
    }
    return kept, {language: len(rows) - len(kept[language]) for language, rows in records.items()}


def records_of(row: Mapping[str, Any], where: str) -> Iterator[Record]:
    """One record, or one for each instance; raises DataError for a row that holds none."""
    if "instances" not in row:
        yield checked_record(row, where)
        return
    instances = row["instances"]
    if not isinstance(instances, list) or not instances:
        raise DataError(f'{where}: "instances" must be a list with an object in it')
    for number, instance in enumerate(instances, start=1):
        there = f"{where}, instance {number}"
        if not isinstance(instance, Mapping):
            raise DataError(f"{there}: not a JSON object but {type(instance).__name__}")
        number_from_2 = "" if number == 1 else f"#{number}"
        identity = f"{_id(row, where)}{number_from_2}"
        yield checked_record(
            {**instance, "id": identity, "instruction": row.get("instruction")}, there
        )


def checked_record(row: Mapping[str, Any], where: str) -> Record:
    """id, instruction, input and output as text; input may be absent."""
    return {
        "id": _id(row, where),
        "instruction": text_field(row, "instruction", where),
        "input": text_field(row, "input", where) if row.get("input") else "",
        "output": text_field(row, "output", where),
    }


def _id(row: Mapping[str, Any], where: str) -> str:
    if row.get("id") in (None, ""):
        raise DataError(f'{where}: the key "id" is missing')
    return str(row["id"])


def is_file_of_language(path: Path, directory: Path) -> bool:
    """Whether read_records would take a path in this directory for the file of some language."""
    if path.resolve().parent != directory.resolve():
        return False
    stem = next((path.name.removesuffix(each) for each in ENDINGS if path.name.endswith(each)), "")
    return stem.rpartition(".")[2] in LANGUAGE_NAMES


def _file_of(directory: Path, language: str) -> Path:
    names = [f"{language}{ending}" for ending in ENDINGS]
    found = [
        path
        for path in (sorted(directory.iterdir()) if directory.is_dir() else ())
        if path.name in names or any(path.name.endswith(f".{name}") for name in names)
    ]
    if len(found) != 1:
        has = f"has {', '.join(path.name for path in found)}" if found else "has none"
        raise DataError(
            f"{directory}: must hold one of {', '.join(names)}, or one whose name ends in a dot "
            f"and one of these; it {has}"
        )
    return found[0]


def _rows_of_json(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where, row) of a JSON list of objects, or of SQuAD's nested one."""
    content = read_json(path)
    if isinstance(content, dict) and "data" in content:
        yield from _squad_rows(content, str(path))
        return
    if not isinstance(content, list):
        raise DataError(f"{path}: not a JSON list, nor SQuAD, but {type(content).__name__}")
    for number, row in enumerate(content, start=1):
        where = f"{path}, element {number}"
        if not isinstance(row, dict):
            raise DataError(f"{where}: not a JSON object but {type(row).__name__}")
        yield where, row


def _squad_rows(content: dict[str, Any], path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for where, article in _objects(content, "data", path):
        for there, paragraph in _objects(article, "paragraphs", where):
            for here, question in _objects(paragraph, "qas", there):
                answers = [answer for _, answer in _objects(question, "answers", here)]
                if not answers:
                    raise DataError(f'{here}: "answers" is empty')
                row = {
                    "id": question.get("id"),
                    "instruction": text_field(question, "question", here),
                    "input": text_field(paragraph, "context", there),
                    "output": text_field(answers[0], "text", here),
                }
                yield here, row


def _objects(parent: Mapping[str, Any], key: str, where: str) -> Iterator[tuple[str, Any]]:
    """(where, object) of the list parent[key]."""
    values = parent.get(key)
    if not isinstance(values, list):
        raise DataError(f'{where}: "{key}" must be a list, got {type(values).__name__}')
    for number, value in enumerate(values, start=1):
        there = f"{where}, {key} {number}"
        if not isinstance(value, dict):
            raise DataError(f"{there}: not a JSON object but {type(value).__name__}")
        yield there, value
