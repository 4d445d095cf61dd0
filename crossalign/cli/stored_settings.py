"""config.yaml of a run that is to go on: whether it is what was written, and where a copy is."""

from __future__ import annotations

from pathlib import Path

from crossalign.alignment.run_config import SETTINGS_FILE
from crossalign.files.sealed import is_sealed
from crossalign.files.text import DataError


def check_settings_file(directory: Path) -> None:
    """Whether the config.yaml of a run is whole. One that somebody wrote without the last line must
    name every setting that the run has stored.

    Raises:
        DataError: it is damaged or changed; the message names the checkpoint that has a copy.
    """
    path, copy = directory / SETTINGS_FILE, _newest_copy(directory)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}{_way_out(path, copy)}") from None
    is_whole = is_sealed(content)
    if is_whole is None:
        is_whole = copy is None or _names(copy.read_bytes()) <= _names(content)
    if not is_whole:
        raise DataError(
            f"{path}: damaged, or changed by hand: not what was written, by SHA-256; settings that "
            f"change are flags{_way_out(path, copy)}"
        )


def _way_out(path: Path, copy: Path | None) -> str:
    if copy is None:
        return ""
    return f"; {copy} holds the settings of the run: copy it to {path}"


def _newest_copy(directory: Path) -> Path | None:
    """The settings that the newest checkpoint has, of those that are whole."""
    copies = directory.glob(f"checkpoints/step-[0-9]*/{SETTINGS_FILE}")
    whole = [path for path in copies if is_sealed(path.read_bytes())]
    return max(whole, key=lambda path: int(path.parent.name.removeprefix("step-")), default=None)


def _names(content: bytes) -> set[bytes]:
    """Of the settings: what is in front of the first colon of a line."""
    lines = content.split(b"\n")
    return {line.partition(b":")[0] for line in lines if line[:1].isalpha() and b":" in line}
