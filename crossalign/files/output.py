"""A directory of results that is there whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path


def check_output(directory: Path, entries: Collection[str] = ()) -> None:
    """The directory must be absent, empty, or hold nothing but earlier results (`entries`).

    Raises:
        FileExistsError: it is something else, which is not to be overwritten.
        PermissionError: it could not be made, for lack of the right to write beside it.
    """
    if directory.is_symlink() or (directory.exists() and not directory.is_dir()):
        raise FileExistsError(f"{directory}: must be a directory or not exist; name another output")
    foreign = sorted({path.name for path in directory.glob("*")} - set(entries))
    if foreign:
        wanted = "new, empty or hold earlier results alone" if entries else "new or empty"
        raise FileExistsError(
            f"{directory}: must be {wanted}, but has {', '.join(foreign[:3])}; name another output"
        )
    around = next(path for path in directory.absolute().parents if path.exists())
    if not around.is_dir():
        raise FileExistsError(f"{directory}: {around} is not a directory; name another output")
    if not os.access(around, os.W_OK):
        raise PermissionError(f"{directory}: {around} may not be written to; name another output")


@contextlib.contextmanager
def atomic_directory(directory: Path, entries: Collection[str] = ()) -> Iterator[Path]:
    """Gives an empty directory to write into, which at the end takes the place of `directory`.

    If the body fails or is interrupted, `directory` stays as it was. Raises as check_output does.
    """
    check_output(directory, entries)
    directory.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(dir=directory.parent, prefix=f".{directory.name}."))
    try:
        results = aside / "new"
        results.mkdir()
        yield results
        if directory.exists():
            os.rename(directory, aside / "old")
        os.rename(results, directory)
    finally:
        if (aside / "old").exists() and not directory.exists():
            os.rename(aside / "old", directory)
        shutil.rmtree(aside, ignore_errors=True)
