"""The page on architecture is true: its figure is current, and what it names exists."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from benchmarks.architecture import count, figure
from benchmarks.architecture.imports import MODULES, PACKAGE, ROOT

PAGE = (ROOT / "docs" / "architecture.md").read_text()


def test_the_figure_is_drawn_from_the_imports_of_today() -> None:
    assert figure.FIGURE.read_text() == figure.draw(), (
        "docs/architecture.svg is out of date; run python -m benchmarks.architecture.figure"
    )
    ElementTree.fromstring(figure.draw())


def test_the_page_has_a_paragraph_for_each_room() -> None:
    rooms = {
        name
        for name in MODULES
        if name and "." not in name and MODULES[name].is_relative_to(PACKAGE / name)
    }
    for room in rooms:
        assert f"**`{room}/`**" in PAGE, room


def test_files_that_the_page_names_exist() -> None:
    named = set(re.findall(r"`([\w/]+\.(?:py|yaml))`", PAGE))
    assert len(named) > 20
    missing = [
        name
        for name in named
        if not any((folder / name).exists() for folder in (ROOT, PACKAGE, PACKAGE / "contrastive"))
    ]
    assert not missing


def test_counts_of_today() -> None:
    counts = count.count_here()
    assert (counts.arrows_up, counts.circles) == (0, 0)
    assert counts.files == sum(path.name != "__init__.py" for path in MODULES.values())
    assert counts.files_of_largest_folder <= 24
    assert "| circles | 0 |" in count.table({"now": counts})


def test_an_older_state_is_counted_by_the_layers_that_its_own_test_declares(tmp_path: Path) -> None:
    package = tmp_path / "crossalign"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "low.py").write_text("def f():\n    from crossalign.high import g\n")
    (package / "high.py").write_text("from crossalign.low import f\n")
    layers = count.declared_layers('LAYERS = (("low",), ("high",))\n')
    counts = count.count(package, lambda *names: count.is_against(layers, *names))
    assert (counts.files, counts.flat_modules, counts.folders) == (2, 2, 1)
    assert (counts.arrows_up, counts.circles, counts.levels) == (1, 1, 1)
    with pytest.raises(ValueError, match="declares no LAYERS"):
        count.declared_layers("x = 1\n")
