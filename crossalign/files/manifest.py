"""The manifest of a folder: size and SHA-256 of each file, so that a damaged one is noticed.

Everything is flushed to the disk before the manifest is, so a folder that gets its final name
afterwards is whole even if the power fails.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from crossalign.files.output import flush, flush_names
from crossalign.files.text import DataError

MANIFEST_FILE = "manifest.json"
_CHUNK = 2**22  # bytes read at a time


class DamagedFileError(DataError):
    """A file that is missing, or not what the manifest beside it says."""


def write_manifest(folder: Path) -> None:
    """Adds a manifest of every file under the folder, and flushes all of it to the disk.

    The files go first: a manifest on the disk lists only what is there.
    """
    entries = {}
    manifest = folder / MANIFEST_FILE
    flush(folder)
    for path in sorted(each for each in folder.rglob("*") if each.is_file() and each != manifest):
        entries[path.relative_to(folder).as_posix()] = {
            "bytes": path.stat().st_size,
            "sha256": _sha256(path),
        }
    sealed = {"files": entries, "sha256": _digest(entries)}
    manifest.write_text(json.dumps(sealed, indent=1) + "\n", encoding="utf-8")
    flush(manifest)
    flush_names(folder)


def check_manifest(folder: Path) -> None:
    """Compares every file that the manifest lists with what it says of it.

    Raises:
        DamagedFileError: names the first file that is missing, shorter, longer or changed.
    """
    manifest = folder / MANIFEST_FILE
    try:
        stored = json.loads(manifest.read_text(encoding="utf-8"))
        entries = stored["files"]
        expected = {name: (each["bytes"], each["sha256"]) for name, each in entries.items()}
    except OSError as error:
        raise DamagedFileError(f"{manifest}: cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise DamagedFileError(f"{manifest}: damaged: not a manifest") from None
    if stored.get("sha256", _digest(entries)) != _digest(entries):
        raise DamagedFileError(f"{manifest}: damaged: not what was written, by its own SHA-256")
    for name, (size, digest) in expected.items():
        path = folder / name
        try:
            found = path.stat().st_size
            if found != size:
                raise DamagedFileError(f"{path}: damaged: {found} bytes, written were {size}")
            if _sha256(path) != digest:
                raise DamagedFileError(f"{path}: damaged: not what was written, by SHA-256")
        except OSError as error:
            raise DamagedFileError(f"{path}: cannot be read: {error.strerror}") from None


def _digest(entries: Mapping[str, Any]) -> str:
    """Of the manifest itself."""
    return hashlib.sha256(json.dumps(entries, sort_keys=True).encode()).hexdigest()


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
