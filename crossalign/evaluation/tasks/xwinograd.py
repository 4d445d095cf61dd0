"""XWinograd: the sentence is cut at its pronoun, where either candidate may stand.

The candidates are filled in as the release spells them, also for a possessive pronoun or at the
start of a sentence. Sentences that occur there more than once, with another pronoun or other
candidates, are items of their own, as in the published scores.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from crossalign.evaluation.tasks.items import Item, Split, duplicates
from crossalign.evaluation.tasks.release import check_rows, need_file, read_rows
from crossalign.files.text import DataError, checked_text

_FOLDERS = ("xwinograd", "XWinograd", "crosslingual_winograd", ".")
_CODES = {"ja": "jp"}  # as the release calls it
_COLUMNS = 7
# The tokenizer of the release writes opening and closing quotation marks apart.
_QUOTES = {"``": '"', "''": '"'}


def read_xwinograd(data: Path, language: str, split: str) -> Split:
    """xwinograd.en.tsv, or dataset.tsv of all languages; both splits are the one there is."""
    code = _CODES.get(language, language)
    path = need_file(data, _FOLDERS, (f"xwinograd.{code}.tsv", "dataset.tsv"))
    rows = read_rows(path, _COLUMNS)
    check_rows(path, len(rows))
    rows = [row for row in rows if row[1][0] == code]
    if not rows:
        raise DataError(f'{path}: no row of the language "{code}"')
    items = [_item(row, where, cells) for row, (where, cells) in enumerate(rows)]
    repeated = len(rows) - len({cells[3] for _, cells in rows})
    notes = {"exact_duplicates_kept": duplicates(items), "repeated_sentences_kept": repeated}
    return Split(items, len(items), (str(path),), notes)


def _item(row: int, where: str, cells: list[str]) -> Item:
    text = cells[3]
    try:
        tokens = [str(token) for token in json.loads(cells[4])]
        pronoun, (start, end), _ = json.loads(cells[5])
        (first, _, _, first_is_right), (second, _, _, second_is_right) = json.loads(cells[6])
        spans = _token_spans(text, tokens)
        begin, stop = spans[start][0], spans[end - 1][1]
    except (ValueError, TypeError, IndexError) as error:
        raise DataError(f"{where}: not a row of XWinograd: {error}") from None
    if text[begin:stop] != pronoun:
        raise DataError(f"{where}: the pronoun {pronoun!r} is not where its tokens are")
    if {first_is_right, second_is_right} != {True, False}:
        raise DataError(f"{where}: one of the two candidates must be right")
    fields = {
        "before": text[:begin],
        "after": text[stop:].rstrip(),
        "option1": _option(first, where),
        "option2": _option(second, where),
    }
    return Item(row, str(row), fields, 0 if first_is_right else 1)


def _option(value: Any, where: str) -> str:
    return checked_text(value, "candidate", where)


def _token_spans(text: str, tokens: list[str]) -> list[tuple[int, int]]:
    """Where each token is in the text: the ranges of the release count tokens."""
    spans, position = [], 0
    for token in tokens:
        begin = text.index(_QUOTES.get(token, token), position)
        position = begin + len(_QUOTES.get(token, token))
        spans.append((begin, position))
    return spans
