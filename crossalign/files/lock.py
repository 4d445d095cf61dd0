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

from crossalign.files.output import path_of_full_disk

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
        PermissionError: it takes no file.
    """
    around = next(each for each in (folder, *folder.absolute().parents) if os.path.lexists(each))
    if not around.is_dir():
        raise NotADirectoryError(f"{folder}: {around} is not a directory; name another output")
    made = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with _holding(folder / LOCK_FILE, folder):
            yield
    finally:
        with contextlib.suppress(OSError):  # not empty: it has results
            for each in made:
                each.rmdir()


@contextlib.contextmanager
def held(output: Path) -> Iterator[None]:
    """Keeps other processes off a file or folder that appears when it is finished, by a lock file
    in the folder around it.

    Raises:
        InUseError: another process is making it, which is named.
        PermissionError: the folder takes no file.
    """
    around = next(each for each in output.absolute().parents if each.is_dir())
    name = ".".join(output.absolute().relative_to(around).parts)
    with _holding(around / f".{name[:100]}{LOCK_FILE}", output):
        yield


@contextlib.contextmanager
def _holding(path: Path, shown: Path) -> Iterator[None]:
    try:
        with path_of_full_disk(path):
            descriptor = _lock(path, shown)
    except PermissionError:
        raise PermissionError(
            f"{shown}: {path.parent} may not be written to; name another output"
        ) from None
    try:
        yield
    finally:
        # Removed while it is held: nobody can have locked this very file in between.
        with contextlib.suppress(OSError):
            path.unlink()
        os.close(descriptor)


def _lock(path: Path, shown: Path) -> int:
    """The descriptor that holds the lock of a file, which is that of `shown`."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_current = path.exists() and os.fstat(descriptor).st_ino == path.stat().st_ino
            if is_current:  # else its last holder removed it before it was locked here
                os.ftruncate(descriptor, 0)
                os.write(descriptor, f"{os.getpid()}\n".encode())
                return descriptor
        except BlockingIOError:
            holder = os.read(descriptor, 32).decode(errors="replace").strip()
            os.close(descriptor)
            raise InUseError(
                f"{shown}: in use by process {holder or 'unknown'}; wait for it, or stop it"
            ) from None
        except OSError:
            os.close(descriptor)
            raise
        os.close(descriptor)
