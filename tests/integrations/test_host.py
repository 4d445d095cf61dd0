"""A library that is not there is named, with the extra that brings it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from crossalign.integrations.host import import_host


def test_the_extra_is_named() -> None:
    with pytest.raises(
        ModuleNotFoundError,
        match=r"no-such-host must be installed, .* pip install 'crossalign\[integrations\]'",
    ) as caught:
        import_host("no-such-host", "no_such_host.losses", "no_such_host.old_losses")
    assert caught.value.name == "no_such_host.losses"


def test_the_first_module_that_exists_is_taken() -> None:
    assert import_host("os", "os.no_such_module", "os.path").__name__ in ("posixpath", "ntpath")


def test_what_a_library_lacks_itself_is_not_hidden(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own message names the package; ours would send people to an extra they have."""
    (tmp_path / "half_a_host.py").write_text("import no_such_dependency\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="'no_such_dependency'"):
        import_host("half-a-host", "half_a_host")
    assert "half_a_host" not in sys.modules
