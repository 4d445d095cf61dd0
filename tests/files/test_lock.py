"""A folder has one owner, as long as its process lives; what killed processes left is swept."""

from __future__ import annotations

import multiprocessing
import os
import signal
import tempfile
import time
from pathlib import Path

import pytest

from crossalign.files.lock import LOCK_FILE, InUseError, locked
from crossalign.files.temporary import full_disk_named, temporary_folder


def hold(folder: Path) -> None:
    with locked(folder):
        (folder / "ready").touch()
        time.sleep(600)


def hold_temporary(parent: Path) -> None:
    tempfile.tempdir = str(parent)
    with temporary_folder() as folder:
        (folder / "ready").touch()
        time.sleep(600)


@pytest.mark.parametrize("is_temporary", [False, True])
def test_a_living_holder_keeps_its_folder_and_a_killed_one_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_temporary: bool
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    target = hold_temporary if is_temporary else hold
    holder = multiprocessing.get_context("fork").Process(
        target=target, args=(tmp_path if is_temporary else tmp_path / "out",)
    )
    holder.start()
    while not (found := list(tmp_path.glob("*/ready"))):
        time.sleep(0.01)
    folder = found[0].parent
    with temporary_folder():
        assert folder.exists()
    with pytest.raises(InUseError, match=f"{folder}: in use by process {holder.pid}; wait"):
        locked(folder).__enter__()
    os.kill(int(holder.pid or 0), signal.SIGKILL)
    holder.join()
    with temporary_folder() as mine:
        assert folder.exists() is not is_temporary  # only what is temporary is swept
        assert mine.exists()
    assert not mine.exists()
    with locked(folder):
        assert (folder / LOCK_FILE).read_text() == f"{os.getpid()}\n"
    assert not (folder / LOCK_FILE).exists()


def test_folders_made_for_the_lock_go_if_nothing_is_in_them(tmp_path: Path) -> None:
    with locked(tmp_path / "a" / "b"):
        assert (tmp_path / "a" / "b").is_dir()
    assert not (tmp_path / "a").exists()
    with locked(tmp_path / "a" / "b"):
        (tmp_path / "a" / "b" / "result").touch()
    assert [each.name for each in (tmp_path / "a" / "b").iterdir()] == ["result"]


def test_the_error_of_the_body_wins(tmp_path: Path) -> None:
    with pytest.raises(KeyError), locked(tmp_path / "out"):
        (tmp_path / "out" / "log").touch()  # so that the folder cannot be removed
        raise KeyError


@pytest.mark.parametrize("name", ["file", "file/out", "link", "link/out"])
def test_what_is_no_folder_is_named(tmp_path: Path, name: str) -> None:
    """Below a file and at a link to nothing it was "[Errno 20] Not a directory"."""
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("nothing")
    bad = tmp_path / name.partition("/")[0]
    message = f"^{tmp_path / name}: {bad} is not a directory; name another output"
    with pytest.raises(NotADirectoryError, match=message), locked(tmp_path / name):
        pass
    assert sorted(each.name for each in tmp_path.iterdir()) == ["file", "link"]


def test_a_full_disk_names_folder_and_way_out(tmp_path: Path) -> None:
    with (
        pytest.raises(OSError, match=f"{tmp_path}: No space left on device; set TMPDIR"),
        full_disk_named(tmp_path, "set TMPDIR"),
        open("/dev/full", "w") as file,
    ):
        file.write("x")
    with pytest.raises(FileNotFoundError), full_disk_named(tmp_path, "set TMPDIR"):
        (tmp_path / "none").read_text()
