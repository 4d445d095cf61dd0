"""A folder's manifest notices every kind of damage, and names the file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from crossalign.files.manifest import (
    MANIFEST_FILE,
    DamagedFileError,
    check_manifest,
    write_manifest,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "inner").mkdir()
    (tmp_path / "weights").write_bytes(bytes(range(256)) * 40)
    (tmp_path / "inner" / "part").write_text("part")
    (tmp_path / "empty").touch()
    write_manifest(tmp_path)
    return tmp_path


def flip_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut": (lambda path: path.write_bytes(path.read_bytes()[:-1]), "bytes, written were"),
    "emptied": (lambda path: path.write_bytes(b""), "damaged: 0 bytes, written were"),
    "longer": (lambda path: path.write_bytes(path.read_bytes() + b"\0"), "bytes, written were"),
    "one bit": (flip_bit, "damaged: not what was written, by SHA-256"),
    "gone": (lambda path: path.unlink(), "cannot be read: No such file or directory"),
}


def test_what_was_written_passes(folder: Path) -> None:
    check_manifest(folder)
    listed = json.loads((folder / MANIFEST_FILE).read_text())["files"]
    assert listed.keys() == {"weights", "inner/part", "empty"}
    # sha256sum of the empty file, as every table of it says.
    assert listed["empty"]["sha256"].startswith("e3b0c44298fc1c149afbf4c8996fb924")


@pytest.mark.parametrize("name", ["weights", "inner/part"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_named(folder: Path, name: str, damage: str) -> None:
    harm, message = DAMAGES[damage]
    harm(folder / name)
    with pytest.raises(DamagedFileError, match=f"{name}: .*{message}"):
        check_manifest(folder)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"files": 3}', b"\xff", None])
def test_damaged_manifest_names_itself(folder: Path, content: bytes | None) -> None:
    path = folder / MANIFEST_FILE
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(DamagedFileError, match=f"{MANIFEST_FILE}: "):
        check_manifest(folder)


def test_a_flipped_bit_of_the_manifest_blames_no_other_file(folder: Path) -> None:
    """It named a file that was never there."""
    path = folder / MANIFEST_FILE
    path.write_text(path.read_text().replace('"weights"', '"wekghts"'))
    with pytest.raises(DamagedFileError, match=f"{MANIFEST_FILE}: damaged: .* its own SHA-256"):
        check_manifest(folder)
