"""The lines of a text file by number, read from disk when asked for.

One streaming pass checks every line and writes where each one starts; memory does not grow with the
file. The index lives in a cache directory, and is used again while the file stays as it was:

    <cache>/<file name>.<hash of path and kind>/
        index.json   the source's size, time and hash of its head; what the check counted
        starts       8 bytes for each line and for the end: its byte offset
        text         the unpacked text, if the file's name ends in .gz
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import struct
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from crossalign.files.output import directory_aside, path_of_full_disk, put_in_place
from crossalign.files.streamed_lines import CHUNK, whole_lines
from crossalign.files.text import DataError, check_is_no_pipe

_FORMAT = 2  # of the index; others are rebuilt
_HEAD = 2**16  # bytes whose hash tells a changed file of equal size and time
_MOST_REASONS = 5
_BUILDING = ".building."


class Check(Protocol):
    """Looks at every line of a file once: raises DataError, or counts what the reader must know."""

    kind: str  # names what is checked: another kind needs another index

    def __call__(self, line: str, where: str) -> None: ...

    def summary(self) -> dict[str, Any]: ...


class IndexedLines:
    """Lines 0 to len - 1 of a UTF-8 file, as text_files.read_lines splits it.

    Args:
        path: the file; it must not change while this is in use.
        cache: where indexes live; made if absent. Processes may share it.
        make_check: a fresh check, called if the index must be built.
        skip_bad_lines: lines that cannot be used are told, and no error up to this number.

    Attributes:
        bad_lines: numbers of the lines that cannot be used, ascending.
        bad_reasons: "path:line: reason" of the first of them.

    Raises:
        DataError: the file is missing, empty, cut off, a pipe or not UTF-8, or the check refused a
            line; nothing is left in the cache then.
    """

    def __init__(
        self, path: Path, cache: Path, make_check: Callable[[], Check], *, skip_bad_lines: int = 0
    ) -> None:
        self.path = path
        check = make_check()
        digest = hashlib.sha256(
            f"{path.resolve()}\n{check.kind}".encode(errors="surrogateescape")
        ).hexdigest()
        entry = cache / f"{path.name}.{digest[:16]}"
        source = _describe(path)
        index = _usable_index(entry, source)
        if index is None:
            index = _build(path, entry, source, check, skip_bad_lines)
        self.bad_lines: list[int] = index["bad_lines"]
        self.bad_reasons: list[str] = index["bad_reasons"]
        if len(self.bad_lines) > skip_bad_lines:  # found when it was built with another number
            raise DataError(_too_many(self.bad_reasons[0], skip_bad_lines))
        self.summary: dict[str, Any] = index["summary"]
        self.fingerprint: str = index["sha256"]  # of the unpacked text
        self._count: int = index["lines"]
        self._starts = os.open(entry / "starts", os.O_RDONLY)
        self._is_copy = path.suffix == ".gz"
        self._text = os.open(entry / "text" if self._is_copy else path, os.O_RDONLY)
        weakref.finalize(self, _close, self._starts, self._text)
        self._state = (source["size"], source["time_ns"])

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: int) -> str:
        if not 0 <= number < self._count:
            raise IndexError(f"{self.path}: has lines 0 to {self._count - 1}, not {number}")
        start, end = struct.unpack("<QQ", os.pread(self._starts, 16, 8 * number))
        text = os.pread(self._text, end - start, start)
        if not self._is_copy:
            self._check_unchanged()  # after the text was read, so that it is of this state
        return _without_end(text.decode())

    def _check_unchanged(self) -> None:
        """Another time of the last change alone is none, if the file still holds the same."""
        status = os.fstat(self._text)
        state = (status.st_size, status.st_mtime_ns)
        if state == self._state:
            return
        digest, offset = hashlib.sha256(), 0
        while chunk := os.pread(self._text, CHUNK, offset):
            digest.update(chunk)
            offset += len(chunk)
        if digest.hexdigest() != self.fingerprint:
            raise DataError(
                f"{self.path}: changed while it was in use; bring back what it held, then go on"
            )
        self._state = state

    def where(self, number: int) -> str:
        """ "path:line" as messages name it, counted from 1."""
        return f"{self.path}:{number + 1}"


def _describe(path: Path) -> dict[str, Any]:
    """What must be as it was for an index to hold."""
    try:
        check_is_no_pipe(path)
        status = path.stat()
        with open(path, "rb") as file:
            head = hashlib.sha256(file.read(_HEAD)).hexdigest()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    return {"format": _FORMAT, "size": status.st_size, "time_ns": status.st_mtime_ns, "head": head}


def _usable_index(entry: Path, source: dict[str, Any]) -> dict[str, Any] | None:
    try:
        index: dict[str, Any] = json.loads((entry / "index.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):  # none yet, or damaged
        return None
    return index if index.get("source") == source else None


def _build(
    path: Path, entry: Path, source: dict[str, Any], check: Check, skip_bad_lines: int
) -> dict[str, Any]:
    """Builds the index aside and renames it into place."""
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise DataError(f"{entry.parent}: is no directory; name another --cache") from None
    with path_of_full_disk(entry.parent), directory_aside(entry.parent, _BUILDING) as aside:
        index = {"source": source, **_write_index(path, aside, check, skip_bad_lines)}
        if _describe(path) != source:
            raise DataError(f"{path}: changed while it was read")
        (aside / "index.json").write_text(json.dumps(index), encoding="utf-8")
        if _usable_index(entry, source) is None:  # else another process was quicker
            try:
                put_in_place(aside, entry)
            except OSError:
                if _usable_index(entry, source) is None:  # else as above, in between
                    raise
    return index


def _write_index(path: Path, directory: Path, check: Check, skip_bad_lines: int) -> dict[str, Any]:
    import numpy as np

    digest = hashlib.sha256()
    count, offset = 0, 0
    bad: dict[int, str] = {}
    with contextlib.ExitStack() as stack:
        starts = stack.enter_context(open(directory / "starts", "wb"))
        copy: BinaryIO | None = None
        if path.suffix == ".gz":
            copy = stack.enter_context(open(directory / "text", "wb"))
        for block in whole_lines(path):
            digest.update(block)
            if copy is not None:
                copy.write(block)
            mark = 3 if offset == 0 and block.startswith(b"\xef\xbb\xbf") else 0
            lines = _decoded_lines(path, block[mark:], count)
            _check_lines(path, lines, count, check, bad, skip_bad_lines)
            ends = np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n")) + 1
            line_starts = np.concatenate(([mark], ends))[: len(lines)] + offset
            starts.write(line_starts.astype("<u8").tobytes())
            count += len(lines)
            offset += len(block)
        starts.write(struct.pack("<Q", offset))
    if count == 0:
        raise DataError(f"{path}: the file is empty")
    return {
        "lines": count,
        "sha256": digest.hexdigest(),
        "summary": check.summary(),
        "bad_lines": list(bad),
        "bad_reasons": list(bad.values())[:_MOST_REASONS],
    }


def _decoded_lines(path: Path, block: bytes, lines_before: int) -> list[str | DataError]:
    """The lines of a block; what is not UTF-8 is the error that says so."""
    pieces = block.split(b"\n")
    if pieces[-1] == b"":
        pieces.pop()
    lines: list[str | DataError] = []
    for number, piece in enumerate(pieces, start=lines_before + 1):
        try:
            lines.append(piece.decode().removesuffix("\r"))
        except UnicodeDecodeError as error:
            lines.append(DataError(f"{path}:{number}: not valid UTF-8 ({error.reason})"))
    return lines


def _check_lines(
    path: Path,
    lines: Sequence[str | DataError],
    lines_before: int,
    check: Check,
    bad: dict[int, str],
    skip_bad_lines: int,
) -> None:
    """Adds the lines that cannot be used to `bad`; raises DataError where they become too many."""
    for number, line in enumerate(lines, start=lines_before):
        reason = _fault(line, path, number, check)
        if reason is None:
            continue
        bad[number] = reason
        if len(bad) > skip_bad_lines:
            raise DataError(_too_many(reason, skip_bad_lines))


def _fault(line: str | DataError, path: Path, number: int, check: Check) -> str | None:
    if isinstance(line, DataError):
        return str(line)
    try:
        check(line, "")
    except DataError:
        try:  # to say where, which is composed for bad lines only
            check(line, f"{path}:{number + 1}")
        except DataError as error:
            return str(error)
    return None


def _too_many(reason: str, skip_bad_lines: int) -> str:
    if skip_bad_lines == 0:
        return reason
    return f"{reason}; it is one more than the {skip_bad_lines} of --skip-bad-lines"


def _without_end(line: str) -> str:
    return line.removesuffix("\n").removesuffix("\r")


def _close(*descriptors: int) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
