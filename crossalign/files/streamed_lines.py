"""The lines of a text file as they come, without decoding them: as much of it as a block holds."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from crossalign.files.text import DataError, check_encoding, check_is_no_pipe

CHUNK = 2**20  # bytes read at a time
LONGEST_LINE = 2**26  # bytes; more is a file of another kind


def stream_lines(path: Path) -> Iterator[bytes]:
    """The lines of a file, unpacked, split as IndexedLines splits them, but not decoded.

    Raises:
        DataError: the file is missing or cut off.
    """
    mark = b"\xef\xbb\xbf"
    for block in whole_lines(path):
        lines = block.removeprefix(mark).split(b"\n")
        mark = b""
        if lines[-1] == b"":
            lines.pop()
        yield from (line.removesuffix(b"\r") for line in lines)


def whole_lines(path: Path) -> Iterator[bytes]:
    """The bytes of a file, unpacked, in blocks that end with a line; the last one may lack "\n"."""
    rest = b""
    opener: Any = gzip.open if path.suffix == ".gz" else open
    try:
        check_is_no_pipe(path)
        with opener(path, "rb") as file:
            is_first = True
            while chunk := file.read(CHUNK):
                end = chunk.rfind(b"\n") + 1
                if end:
                    block = rest + chunk[:end]
                    if is_first:
                        check_encoding(path, block)
                    is_first = False
                    yield block
                    rest = chunk[end:]
                else:
                    rest += chunk
                    if len(rest) > LONGEST_LINE:
                        check_encoding(path, rest)
                        raise DataError(f"{path}: a line of more than {LONGEST_LINE} bytes")
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: not a whole gzip file: {error}") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    if rest:
        if is_first:
            check_encoding(path, rest)
        yield rest
