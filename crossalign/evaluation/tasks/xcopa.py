"""XCOPA, and the English COPA that serves as its English: test.id.jsonl and copa-test.xml.

In five languages of the release some items that ask for the cause say "effect". The question is
therefore taken, by idx, from a language of the same release whose questions are right.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from crossalign.evaluation.tasks.items import Item, Split
from crossalign.evaluation.tasks.release import check_rows, find_file, need_file, number_of
from crossalign.files.text import DataError, checked_text, read_json_objects, read_lines, text_field

_FOLDERS = ("xcopa", "xcopa/data", "data", ".")
_ENGLISH_FOLDERS = ("copa_en", "copa", "copa/datasets", "COPA-resources/datasets", ".")
_RIGHT_LANGUAGES = ("zh", "ht", "qu", "vi")  # all their questions agree with English COPA
_QUESTIONS = ("cause", "effect")
# Split -> file, ids: COPA of 2011 numbers both files through; val of XCOPA is the end of its dev.
_ENGLISH_XML = {
    "test": ("copa-test.xml", range(501, 1001)),
    "demos": ("copa-dev.xml", range(401, 501)),
}
_TEXTS = ("premise", "choice1", "choice2")


def read_xcopa(data: Path, language: str, split: str) -> Split:
    """One split; the questions repaired, and notes of how many and after which file."""
    found = _read_language(data, language, split)
    assert found is not None
    path, items = found
    reference = _reference(data, language, split)
    if language == "en" or language in _RIGHT_LANGUAGES:
        return Split(items, len(items), (str(path),), {"repaired_questions": 0})
    if reference is None:
        note = "not checked: no zh, ht, qu, vi or English file of the release is there"
        return Split(items, len(items), (str(path),), {"repaired_questions": note})
    reference_path, right = reference
    items, repaired = repair_questions(items, right, str(path), str(reference_path))
    notes = {"repaired_questions": repaired, "questions_from": str(reference_path)}
    return Split(items, len(items), (str(path),), notes)


def repair_questions(
    items: list[Item], right: list[Item], path: str, reference_path: str
) -> tuple[list[Item], int]:
    """The items with the questions of the reference, and how many were wrong.

    Raises:
        DataError: an idx is not in the reference, or has another label there.
    """
    by_id = {item.id: item for item in right}
    fixed = []
    for item in items:
        other = by_id.get(item.id)
        if other is None or other.label != item.label:
            reason = "is not in" if other is None else "has another label than in"
            raise DataError(
                f"{path}:{item.row + 1}: idx {item.id} {reason} {reference_path}, from which the "
                "questions are taken; the two are not of one release"
            )
        fixed.append(
            Item(
                item.row, item.id, {**item.fields, "question": other.fields["question"]}, item.label
            )
        )
    return fixed, sum(
        ours.fields != theirs.fields for ours, theirs in zip(items, fixed, strict=True)
    )


def _reference(data: Path, language: str, split: str) -> tuple[Path, list[Item]] | None:
    for other in (*_RIGHT_LANGUAGES, "en"):
        if other != language:
            found = _read_language(data, other, split, required=False)
            if found is not None:
                return found
    return None


def _read_language(
    data: Path, language: str, split: str, *, required: bool = True
) -> tuple[Path, list[Item]] | None:
    part = "test" if split == "test" else "val"
    names = [f"{part}.{language}.jsonl"]
    folders = [f"{folder}/{language}" for folder in _FOLDERS]
    if language == "en":
        folders += _ENGLISH_FOLDERS
        names.append(_ENGLISH_XML[split][0])
    path = (need_file if required else find_file)(data, folders, names)
    if path is None:
        return None
    is_xml = ".xml" in path.suffixes
    return path, _read_xml(path, _ENGLISH_XML[split][1]) if is_xml else _read_jsonl(path)


def _read_jsonl(path: Path) -> list[Item]:
    items = [
        xcopa_item(row, record, where)
        for row, (where, record) in enumerate(read_json_objects(path))
    ]
    check_rows(path, len(items))
    return items


def xcopa_item(row: int, record: Mapping[str, Any], where: str) -> Item:
    """One record of the release."""
    fields = {key: text_field(record, key, where) for key in (*_TEXTS, "question")}
    number_of(fields["question"], _QUESTIONS, "question", where)
    for key in ("label", "idx"):
        if not isinstance(record.get(key), int):
            raise DataError(f'{where}: "{key}" must be an integer, got {record.get(key)!r}')
    return Item(
        row, str(record["idx"]), fields, number_of(str(record["label"]), ("0", "1"), "label", where)
    )


def _read_xml(path: Path, ids: range) -> list[Item]:
    text = "\n".join(read_lines(path))
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise DataError(f"{path}:{error.position[0]}: not valid XML: {error}") from None
    items = []
    for element in root.iter("item"):
        name = element.get("id", "")
        line = text.count("\n", 0, text.find(f'id="{name}"')) + 1
        where = f"{path}:{line}"
        if not name.isdigit():
            raise DataError(f"{where}: an item has the id {name!r}")
        if int(name) not in ids:
            continue
        fields = {
            key: checked_text(element.findtext(tag) or "", key, where)
            for key, tag in zip(_TEXTS, ("p", "a1", "a2"), strict=True)
        }
        question = element.get("asks-for", "")
        number_of(question, _QUESTIONS, "asks-for", where)
        label = element.get("most-plausible-alternative", "")
        items.append(
            Item(
                int(name) - ids.start,
                str(int(name) - ids.start),
                {**fields, "question": question},
                number_of(label, ("1", "2"), "most-plausible-alternative", where),
            )
        )
    if len(items) != len(ids):
        raise DataError(
            f"{path}: {len(ids)} items with ids from {ids.start} on expected, got {len(items)}"
        )
    return items
