"""Results appear whole, flushed and under their own name, or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from crossalign.files.output import (
    atomic_directory,
    check_is_no_input,
    check_output_directory,
    check_output_file,
    directory_aside,
    let_others_read,
    put_in_place,
    write_whole,
)


def test_everything_is_flushed_before_its_name_appears(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a power cut leaves a complete name with half its content."""
    flushed: list[str] = []
    named: list[str] = []

    def fsync(handle: int) -> None:
        target = Path(os.readlink(f"/proc/self/fd/{handle}"))
        flushed.append(target.name)

    def rename(old: Path, new: Path) -> None:
        named.append(f"{Path(new).name} after {' '.join(sorted(flushed))}")
        real_rename(old, new)

    real_rename = os.rename
    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "rename", rename)
    with atomic_directory(tmp_path / "results") as directory:
        (directory / "a.csv").write_text("1")
        (directory / "deep").mkdir()
        (directory / "deep" / "b.csv").write_text("2")
    assert named == ["results after a.csv b.csv deep new"]
    assert flushed[-1] == tmp_path.name  # the folder that holds the new name
    del flushed[:]
    monkeypatch.setattr(os, "replace", rename)
    write_whole(tmp_path / "c.txt", "3")
    assert named[1].startswith("c.txt after .c.txt.") and flushed[-1] == tmp_path.name


def test_what_had_the_name_comes_back_if_renaming_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    final = tmp_path / "final"
    final.mkdir()
    (final / "earlier").touch()
    real_rename = os.rename

    def rename(old: Path, new: Path) -> None:
        if Path(old).name == "new":
            raise OSError("no room")
        real_rename(old, new)

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(OSError, match="no room"), directory_aside(tmp_path, ".aside.") as aside:
        put_in_place(aside, final)
    assert [path.name for path in tmp_path.iterdir()] == ["final"]
    assert [path.name for path in final.iterdir()] == ["earlier"]


def test_modes_are_those_of_any_new_file(tmp_path: Path) -> None:
    mask = os.umask(0o027)
    try:
        write_whole(tmp_path / "file", "x")
        with atomic_directory(tmp_path / "folder"):
            pass
    finally:
        os.umask(mask)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "folder").stat().st_mode & 0o777 == 0o750


def test_files_that_others_made_private_are_readable(tmp_path: Path) -> None:
    """model.safetensors was readable for its owner only."""
    weights = tmp_path / "model" / "model.safetensors"
    weights.parent.mkdir()
    weights.touch(mode=0o600)
    before = os.umask(0o027)
    try:
        let_others_read(tmp_path)
    finally:
        os.umask(before)
    assert weights.stat().st_mode & 0o777 == 0o640


def test_a_link_keeps_its_place(tmp_path: Path) -> None:
    (tmp_path / "real.json").write_text("old")
    (tmp_path / "link.json").symlink_to(tmp_path / "real.json")
    write_whole(tmp_path / "link.json", "new")
    assert (tmp_path / "link.json").is_symlink()
    assert (tmp_path / "real.json").read_text() == "new"


def test_a_name_as_long_as_the_file_system_takes(tmp_path: Path) -> None:
    write_whole(tmp_path / ("n" * 250), "x")
    with atomic_directory(tmp_path / ("d" * 250)):
        pass
    assert {len(path.name) for path in tmp_path.iterdir()} == {250}


def test_unusable_output_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = tmp_path / "there"
    there.touch()
    check_output_file(tmp_path / "new", overwrite=False)
    check_output_file(there, overwrite=True)
    dangling, link = tmp_path / "dangling", tmp_path / "link"
    dangling.symlink_to(tmp_path / "nothing")
    link.symlink_to(there)
    os.mkfifo(tmp_path / "pipe")
    for path, overwrite, message in (
        (there, False, "exists; name another output, or add --overwrite"),
        (link, False, "exists; name another output, or add --overwrite"),
        (dangling, True, "is a link to nothing"),
        (tmp_path, True, "must be a file in an existing folder"),
        (tmp_path / "pipe", True, "must be a file"),
        (tmp_path / "no" / "such", True, "must be a file in an existing folder"),
        (there / "below", True, "must be a file in an existing folder"),
    ):
        with pytest.raises(OSError, match=message):
            check_output_file(path, overwrite=overwrite)
    monkeypatch.setattr("os.access", lambda path, mode: False)  # root may write everywhere
    with pytest.raises(PermissionError, match="may not be written to"):
        check_output_file(tmp_path / "new", overwrite=False)


def test_unusable_output_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    results = tmp_path / "results"
    results.mkdir()
    check_output_directory(results)
    (results / "a.csv").touch()
    check_output_directory(results, overwrite=True, entries=["*.csv"])
    for directory, entries, message in (
        (tmp_path / "dangling" / "below", (), "is not a directory"),
        (tmp_path / "dangling", (), "must be a directory or not exist"),
        (results / "a.csv" / "below", (), "is not a directory"),
        (results, (), "must be new or empty, but has a.csv"),
        (results, ["*.csv"], "holds earlier results; name another output, or add --overwrite"),
        (results, ["b.csv"], "must be new, empty or hold earlier results only, but has a.csv"),
    ):
        with pytest.raises(OSError, match=message):
            check_output_directory(directory, entries=entries)


def test_an_input_is_no_output(tmp_path: Path) -> None:
    file, folder = tmp_path / "file", tmp_path / "folder"
    file.touch()
    folder.mkdir()
    hard, soft = tmp_path / "hard", tmp_path / "soft"
    hard.hardlink_to(file)
    soft.symlink_to(file)
    for same in (file, hard, soft, folder / ".." / "file"):
        with pytest.raises(ValueError, match="is read as an input"):
            check_is_no_input(same, [file])
        with pytest.raises(ValueError, match="is read as an input"):
            check_is_no_input(file, [same])
    around = tmp_path / "around"
    around.symlink_to(folder)
    (folder / "en.json").touch()
    for inside in (folder / "en.json", around / "en.json", folder):
        with pytest.raises(ValueError, match=r"is in .*folder, which is read"):
            check_is_no_input(inside, [], [folder])
    check_is_no_input(tmp_path / "new", [file], [folder])
