"""The one way in which results appear: written aside, flushed to the disk, renamed.

A file or a directory that has its name is therefore complete, whenever the process was killed. What
may be written at all is checked beforehand, so that hours of work are not lost at their end.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Collection, Iterable, Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

FULL = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
)  # no room for more on a disk, for a user, in a file


@contextlib.contextmanager
def path_of_full_disk(path: Path) -> Iterator[None]:
    """An error of the body that says that a disk is full names this path: writing to an open file
    names none, and a file that is written aside has another name."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def check_output_file(path: Path, *, overwrite: bool) -> None:
    """The file must be absent, or regular and to be overwritten, in a folder that takes it.

    Raises:
        FileExistsError, NotADirectoryError, PermissionError: it cannot be written.
    """
    if path.is_symlink() and not path.exists():
        raise FileExistsError(f"{path}: is a link to nothing; name another output")
    if path.exists():
        if not path.is_file():
            raise FileExistsError(f"{path}: must be a file in an existing folder")
        if not overwrite:
            raise FileExistsError(f"{path}: exists; name another output, or add --overwrite")
    folder = path.resolve().parent
    if not folder.is_dir():
        raise NotADirectoryError(f"{path}: must be a file in an existing folder")
    _check_writable(path, folder)


def check_output_directory(
    directory: Path, *, overwrite: bool = False, entries: Collection[str] = ()
) -> None:
    """The directory must be absent or empty, or with overwrite hold only earlier results.

    entries: patterns of the names that earlier results have.

    Raises:
        FileExistsError: it is something else.
        PermissionError: it could not be made.
    """
    if directory.is_symlink() or (directory.exists() and not directory.is_dir()):
        raise FileExistsError(f"{directory}: must be a directory or not exist; name another output")
    names = sorted(path.name for path in directory.glob("*"))
    foreign = [name for name in names if not any(fnmatch(name, each) for each in entries)]
    if foreign:
        wanted = "new, empty or hold earlier results only" if entries else "new or empty"
        raise FileExistsError(
            f"{directory}: must be {wanted}, but has {', '.join(foreign[:3])}; name another output"
        )
    if names and not overwrite:
        raise FileExistsError(
            f"{directory}: holds earlier results; name another output, or add --overwrite"
        )
    around = next(path for path in directory.absolute().parents if os.path.lexists(path))
    if not around.is_dir():
        raise FileExistsError(f"{directory}: {around} is not a directory; name another output")
    _check_writable(directory, around)


def check_is_no_input(
    output: Path, files: Iterable[Path | str], folders: Iterable[Path | str] = ()
) -> None:
    """Raises ValueError where the output is a file that is read, through links too, or one that is
    there in a folder whose files are read."""
    target = output.resolve()
    for each in map(Path, files):
        is_same = each.exists() and output.exists() and each.samefile(output)
        if is_same or each.resolve() == target:
            raise ValueError(f"{output} is read as an input, {each}; name another output")
    for folder in map(Path, folders):
        if target.exists() and folder.is_dir() and folder.resolve() in (target, *target.parents):
            raise ValueError(f"{output} is in {folder}, which is read; name another output")


def check_inputs_outside(output: Path, inputs: Iterable[Path | str]) -> None:
    """Raises ValueError where something that is read is the output directory, or is in it."""
    target = output.resolve()
    for each in map(Path, inputs):
        found = each.resolve()
        if found == target or target in found.parents:
            raise ValueError(f"{each} is read as an input, but is in {output}; name another output")


def write_json_lines(path: Path, records: Iterable[Any]) -> None:
    """One JSON object a line, written as they come; the file appears whole or not at all."""
    write_whole(path, (json.dumps(record, ensure_ascii=False) + "\n" for record in records))


def write_whole(path: Path, text: str | Iterable[str]) -> None:
    """A UTF-8 file that appears whole or not at all; one that is there is replaced.

    A link keeps its place: the file that it names is replaced.
    """
    path = path.resolve()
    with path_of_full_disk(path):
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:100]}.")
        temporary = Path(name)
        try:
            with open(handle, "w", encoding="utf-8", newline="\n") as file:
                file.writelines([text] if isinstance(text, str) else text)
            temporary.chmod(0o666 & ~_umask())  # mkstemp's are private
            put_in_place(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def let_others_read(directory: Path) -> None:
    """Files in it get the usual permissions; safetensors makes its own private."""
    for path in directory.rglob("*"):
        if path.is_file() and not path.is_symlink():
            path.chmod(0o666 & ~_umask())


@contextlib.contextmanager
def atomic_directory(
    directory: Path, *, overwrite: bool = False, entries: Collection[str] = ()
) -> Iterator[Path]:
    """Gives an empty directory to write into, which at the end takes the place of `directory`.

    If the body fails or is interrupted, `directory` stays as it was. Raises as
    check_output_directory does.
    """
    check_output_directory(directory, overwrite=overwrite, entries=entries)
    directory.parent.mkdir(parents=True, exist_ok=True)
    name = f".{directory.name[:100]}."
    with path_of_full_disk(directory), directory_aside(directory.parent, name) as aside:
        yield aside
        put_in_place(aside, directory)


@contextlib.contextmanager
def directory_aside(parent: Path, prefix: str) -> Iterator[Path]:
    """A new directory in `parent`, removed at the end unless it was put in place."""
    outer = Path(tempfile.mkdtemp(dir=parent, prefix=prefix))
    try:
        inner = outer / "new"  # which has the mode that mkdir gives; mkdtemp's are private
        inner.mkdir()
        yield inner
    finally:
        shutil.rmtree(outer, ignore_errors=True)


def put_in_place(finished: Path, final: Path, *, flushed: bool = False) -> None:
    """Gives a finished file or directory its name, and flushes it to the disk first.

    What had the name is replaced; a directory is moved away first, and put back if that fails.
    flushed: what is finished is on the disk already.
    """
    if not flushed:
        flush(finished)
    if not finished.is_dir():
        os.replace(finished, final)
        flush_names(final.parent)
        return
    earlier = Path(f"{finished}.replaced")
    if os.path.lexists(final):
        os.rename(final, earlier)
    try:
        os.rename(finished, final)
    except OSError:
        if os.path.lexists(earlier):
            with contextlib.suppress(OSError):  # another process put one there meanwhile
                os.rename(earlier, final)
        raise
    flush_names(final.parent)
    shutil.rmtree(earlier, ignore_errors=True)


def remove_directory(directory: Path, aside: Path) -> None:
    """Moves a directory into `aside`, a new directory beside it, before deletion: a half-deleted
    one never looks complete."""
    os.rename(directory, aside / "removed")
    shutil.rmtree(aside, ignore_errors=True)


def flush_names(folder: Path) -> None:
    """Waits until the names in a folder, which a rename or a new file changed, are on the disk."""
    _flush_one(folder)


def flush(path: Path) -> None:
    """Waits until a file, or a directory with all that is in it, is on the disk."""
    if path.is_dir():
        for folder, _, names in os.walk(path):
            for name in names:
                _flush_one(Path(folder, name))
            _flush_one(Path(folder))
    else:
        _flush_one(path)


def _flush_one(path: Path) -> None:
    if not stat.S_ISREG(path.lstat().st_mode) and not path.is_dir():
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        with path_of_full_disk(path):
            os.fsync(handle)
    except OSError:
        if path.is_file():  # some file systems cannot flush a directory
            raise
    finally:
        os.close(handle)


def _check_writable(output: Path, folder: Path) -> None:
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(f"{output}: {folder} may not be written to; name another output")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
