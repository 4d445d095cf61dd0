"""Data sets by name: what is asked of the library datasets, and what its rows become."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from crossalign.data.hub import HubPairs, HubSource, hub_records, parse_source
from crossalign.data.pairs import Pair
from crossalign.files.text import DataError

Asked = list[tuple[Any, ...]]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    """Stands in for datasets.load_dataset only, with its signature: what was asked of it."""
    calls: Asked = []

    def load_dataset(path: str, name: str | None = None, *, split: str) -> list[dict[str, Any]]:
        calls.append((path, name, split))
        if path == "gone":
            raise FileNotFoundError("Couldn't find 'gone' on the Hub")
        return ROWS[path]

    module = ModuleType("datasets")
    module.load_dataset = load_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", module)
    return calls


ROWS: dict[str, list[dict[str, Any]]] = {
    "org/tasks": [{"id": "1", "instruction": "a", "input": None, "output": "b"}],
    "opus": [{"translation": {"de": "eins", "en": "one"}}, {"translation": {"de": "", "en": "x"}}],
    "plain": [{"source": "one", "target": "eins"}],
    "empty": [],
}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("hub:org/name", HubSource("org/name", "", "train")),
        ("hub:name:de-en", HubSource("name", "de-en", "train")),
        ("hub:name:de-en:test", HubSource("name", "de-en", "test")),
        ("hub:./folder::validation", HubSource("./folder", "", "validation")),
    ],
)
def test_source_is_parsed(text: str, expected: HubSource) -> None:
    assert parse_source(text) == expected


@pytest.mark.parametrize("text", ["hub:", "hub::de", "name", "hub:a:b:c:d"])
def test_bad_source_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"must be hub:NAME\[:CONFIG\]\[:SPLIT\], got"):
        parse_source(text)


def test_instructions_have_a_config_per_language(asked: Asked) -> None:
    records = hub_records(parse_source("hub:org/tasks"), ["en", "de"])
    assert records["de"] == [{"id": "1", "instruction": "a", "input": "", "output": "b"}]
    hub_records(parse_source("hub:org/tasks:v2-{language}:test"), ["fr"])
    expected = [("org/tasks", "en", "train"), ("org/tasks", "de", "train")]
    assert asked == [*expected, ("org/tasks", "v2-fr", "test")]


def test_pairs_are_read_as_they_are_asked_for(asked: Asked) -> None:
    pairs = HubPairs(parse_source("hub:opus:de-en"), ["en", "de"])
    assert asked == [("opus", "de-en", "train")]
    assert len(pairs) == 2
    assert pairs[0] == Pair("one", "eins", "en", "de")
    assert pairs[:1] == [pairs[0]]
    with pytest.raises(DataError, match='hub:opus:de-en:train, row 1: "de" is empty'):
        list(pairs)
    plain = HubPairs(parse_source("hub:plain"), ["en", "de"])
    assert list(plain) == [Pair("one", "eins", "en", "de")]
    missing = HubPairs(parse_source("hub:opus"), ["en", "fr"])
    with pytest.raises(DataError, match='row 0: the key "fr" is missing'):
        missing[0]


def test_a_set_that_cannot_be_used_is_an_error(asked: Asked) -> None:
    with pytest.raises(DataError, match="hub:gone:train: cannot be loaded: Couldn't find 'gone'"):
        HubPairs(parse_source("hub:gone"), ["en", "de"])
    with pytest.raises(DataError, match="hub:empty:de:train: holds no rows"):
        hub_records(parse_source("hub:empty"), ["de"])


def test_without_the_library_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(RuntimeError, match=r"needs the library datasets: pip install 'crossalign"):
        HubPairs(parse_source("hub:plain"), ["en", "de"])


def test_a_local_folder_is_loaded_by_the_library_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("datasets", reason="needs the extra hub")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    rows = [{"source": "one", "target": "eins"}, {"source": "two", "target": "zwei"}]
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pairs = HubPairs(parse_source(f"hub:{tmp_path / 'set'}"), ["en", "de"])
    assert list(pairs) == [Pair("one", "eins", "en", "de"), Pair("two", "zwei", "en", "de")]
