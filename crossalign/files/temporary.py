"""A temporary folder that is gone after the process, also after one that was killed."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from crossalign.files.lock import LOCK_FILE, InUseError, locked
from crossalign.files.output import FULL

_PREFIX = "crossalign-"


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder in TMPDIR for the time of the body; those of processes that were killed go."""
    _sweep(Path(tempfile.gettempdir()))
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
    try:
        with locked(folder):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def full_disk_named(folder: Path, way_out: str) -> Iterator[None]:
    """Says which folder is full, and the way out, where the body finds no room to write.

    Raises:
        OSError: with both in its message.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise OSError(f"{folder}: {error.strerror}; {way_out}") from error


def _sweep(parent: Path) -> None:
    """Removes the temporary folders that no living process holds."""
    for folder in parent.glob(f"{_PREFIX}*"):
        # Without a lock file it is just being made, or of another kind.
        with contextlib.suppress(OSError, InUseError):
            if (folder / LOCK_FILE).is_file() and folder.stat().st_uid == os.getuid():
                with locked(folder):
                    shutil.rmtree(folder)
