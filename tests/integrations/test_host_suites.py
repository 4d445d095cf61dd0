"""The libraries' own tests with one changed import: what is written about them is what was seen."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path

import pytest

from benchmarks.drop_ins import host_tests
from benchmarks.drop_ins.host_tests import HOSTS, compare

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "host_tests.json"
SOURCES = os.environ.get("CROSSALIGN_HOST_SOURCES")


def test_what_does_not_pass_is_in_the_documents_with_its_count() -> None:
    page = (ROOT / "docs" / "drop-ins.md").read_text()
    found = json.loads(RESULTS.read_text())["hosts"]
    assert set(found) == set(HOSTS)
    for name, result in found.items():
        count = f"{result['pass_with_the_drop_in']} of {result['pass_with_the_host']}"
        assert f"| {HOSTS[name].repository} | {count} |" in page
        for test in result["do_not_pass"]:
            assert test.rpartition("::")[2].partition("[")[0] in page, test


def test_a_library_whose_tests_are_not_there_is_skipped_by_name(tmp_path: Path) -> None:
    if importlib.util.find_spec("open_clip") is None:
        pytest.skip("open_clip is not installed")
    assert compare("open_clip", tmp_path) == {"skipped": f"no {tmp_path / 'open_clip' / 'tests'}"}


def test_a_suite_that_does_not_run_is_no_success(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a package of the tests was missing, 0 of 0 passed."""
    (tmp_path / "lightly" / "tests").mkdir(parents=True)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(host_tests, "run_tests", lambda *_: {"test": "collection failure"})
    with pytest.raises(RuntimeError, match=r"no test of lightly passes .*collection failure"):
        compare("lightly", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", HOSTS)
def test_the_tests_of_the_library_pass(name: str) -> None:
    if SOURCES is None:
        pytest.skip("CROSSALIGN_HOST_SOURCES names no folder of the libraries' clones")
    result = compare(name, Path(SOURCES))
    if "skipped" in result:
        pytest.skip(result["skipped"])
    seen = json.loads(RESULTS.read_text())["hosts"][name]
    assert set(result["do_not_pass"]) <= set(seen["do_not_pass"])
