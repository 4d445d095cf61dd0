"""Who works in a folder: a lock that ends with its process, however the process ends.

A locked folder holds a file `.lock` with the number of the process. The lock itself is flock's: the
kernel frees it when the process dies, so a file that was left behind locks nothing.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

LOCK_FILE = ".lock"


class InUseError(RuntimeError):
    """Another process works in the folder."""


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Makes the folder where it is missing and keeps other processes out of it.

    A folder that was made here and is empty at the end is removed.

    Raises:
        InUseError: another process has it, which is named.
        NotADirectoryError: it is something else.
    """
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder}: is not a directory; name another")
    made = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = _lock(folder)
    try:
        yield
    finally:
        # Removed while it is held: nobody can have locked this very file in between.
        with contextlib.suppress(OSError):
            (folder / LOCK_FILE).unlink()
        os.close(descriptor)
        with contextlib.suppress(OSError):  # not empty: it has results
            for each in made:
                each.rmdir()


def _lock(folder: Path) -> int:
    """The descriptor that holds the folder's lock."""
    path = folder / LOCK_FILE
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_current = path.exists() and os.fstat(descriptor).st_ino == path.stat().st_ino
        except BlockingIOError:
            holder = os.read(descriptor, 32).decode(errors="replace").strip()
            os.close(descriptor)
            raise InUseError(
                f"{folder}: in use by process {holder or 'unknown'}; wait for it, or stop it"
            ) from None
        except OSError:
            os.close(descriptor)
            raise
        if is_current:  # else its last holder removed it before it was locked here
            os.ftruncate(descriptor, 0)
            os.write(descriptor, f"{os.getpid()}\n".encode())
            return descriptor
        os.close(descriptor)
