"""Reading text files: a bad one is named with its line and the reason."""

from __future__ import annotations

import gzip
import json
import stat
import unicodedata
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

# Controls, formats (zero-width space, byte order mark, joiners, soft hyphen) and white space.
_INVISIBLE_CATEGORIES = ("Cc", "Cf", "Zs", "Zl", "Zp")
# Letters, marks and a symbol that are blank all the same: Hangul and Braille fillers, selectors.
_BLANK_LETTERS = frozenset(
    "\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0" + "".join(map(chr, range(0xFE00, 0xFE10)))
)


class DataError(ValueError):
    """A data file that cannot be used: the message names the file, the line and the reason."""


def read_lines(path: Path) -> list[str]:
    r"""The lines of a UTF-8 file, unpacked if its name ends in .gz.

    Lines end only at "\n", so that U+2028 and its kin stay inside a sentence; one "\r" before the
    "\n" and a byte order mark at the start are dropped.

    Raises:
        DataError: the file is missing, empty, cut off, not UTF-8, or has lines that end in "\r".
    """
    content = _read_bytes(path)
    check_encoding(path, content)
    try:
        text = content.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}:{line}: not valid UTF-8 ({error.reason})") from None
    lines = text.split("\n")
    if lines[-1] == "":
        lines.pop()
    if not lines:
        raise DataError(f"{path}: the file is empty")
    return [line.removesuffix("\r") for line in lines]


def read_json_objects(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """("path:line", object) for each line of a JSON-lines file.

    Raises:
        DataError: as read_lines, and for a line that is not a JSON object.
    """
    for number, line in enumerate(read_lines(path), start=1):
        where = f"{path}:{number}"
        yield where, json_object(line, where)


def json_object(line: str, where: str) -> dict[str, Any]:
    """The JSON object that a line holds; raises DataError for anything else."""
    return _checked_object(_parse_json(line, where), where)


def read_json(path: Path) -> Any:
    """What a file of one JSON value holds; raises DataError if it holds none."""
    return _parse_json("\n".join(read_lines(path)), str(path))


def text_field(record: Mapping[str, Any], key: str, where: str) -> str:
    """record[key], which must be text with at least one visible character."""
    if key not in record:
        raise DataError(f'{where}: the key "{key}" is missing')
    return checked_text(record[key], f'"{key}"', where)


def check_encoding(path: Path, head: bytes) -> None:
    """Raises DataError where the first bytes of a file show that it is UTF-16, or that its lines
    end in CR only. They must reach to the end of a line, or to that of the file."""
    if head.startswith((b"\xff\xfe", b"\xfe\xff")) or 4 * head.count(b"\0") > len(head):
        raise DataError(
            f"{path}: is not UTF-8 but UTF-16 or a binary file; `iconv -f UTF-16 -t UTF-8` converts"
        )
    if b"\n" not in head and b"\r" in head.rstrip(b"\r"):
        raise DataError(
            f"{path}: its lines end in CR only, not in LF; `tr '\\r' '\\n'` converts them"
        )


def has_visible_character(text: str) -> bool:
    """Whether anything of the text would be seen in print."""
    return any(_is_visible(character) for character in text)


def _is_visible(character: str) -> bool:
    return not (
        unicodedata.category(character) in _INVISIBLE_CATEGORIES or character in _BLANK_LETTERS
    )


def checked_text(value: Any, name: str, where: str) -> str:
    """value, if it is text that a UTF-8 file can hold and not only white space."""
    if not isinstance(value, str):
        raise DataError(f"{where}: {name} must be text, got {type(value).__name__}")
    if not has_visible_character(value):
        kind = "holds invisible characters only" if value.strip() else "is empty"
        raise DataError(f"{where}: {name} {kind}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise DataError(f"{where}: {name} holds half of a surrogate pair") from None
    return value


def check_is_no_pipe(path: Path) -> None:
    """Raises DataError for what can be read only once: a pipe hangs where nobody writes to it."""
    mode = path.stat().st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise DataError(
            f"{path}: is a pipe or device, which can be read only once; write it to a file and "
            "name that (.gz files are read as they are)"
        )


def _read_bytes(path: Path) -> bytes:
    try:
        check_is_no_pipe(path)
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    if path.suffix != ".gz":
        return content
    try:
        return gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: not a whole gzip file: {error}") from None


def _parse_json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: not valid JSON: {error.msg} (column {error.colno})") from None
    except RecursionError:
        raise DataError(f"{where}: not usable JSON: nested too deeply") from None


def _checked_object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DataError(f"{where}: not a JSON object but {type(value).__name__}")
    return value
