"""What the wheel and the source distribution hold, and what the project says of itself."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

import crossalign
from crossalign.cli.settings_file import RECIPES, find_settings, read_settings
from crossalign.files.text import DataError
from tests.support.built_extension import build_wheel, copy_sources

ROOT = Path(__file__).parents[1]
PURE = {"CROSSALIGN_BUILD_EXTENSION": "0"}
BUILD_SDIST = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"


def files_of_wheel(folder: Path) -> set[str]:
    (wheel,) = folder.glob("*.whl")
    return set(zipfile.ZipFile(wheel).namelist())


def test_a_wheel_has_the_recipes_and_nothing_of_an_earlier_build(tmp_path: Path) -> None:
    """A removed module was still in the next wheel, from the folder that the build before left."""
    sources = copy_sources(tmp_path)
    removed = sources / "crossalign" / "removed.py"
    removed.write_text("")
    names = {}
    for name in ("first", "second"):
        done = build_wheel(sources, tmp_path / name, **PURE)
        assert done.returncode == 0, done.stderr
        names[name] = files_of_wheel(tmp_path / name)
        removed.unlink(missing_ok=True)
    assert names["first"] - names["second"] == {"crossalign/removed.py"}
    data = {f"crossalign/{path.relative_to(RECIPES.parent)}" for path in RECIPES.rglob("*.yaml")}
    assert len(data) > 5 and data <= names["second"]
    assert {"crossalign/py.typed", "crossalign/analysis/report.html"} <= names["second"]
    assert not [name for name in names["second"] if name.startswith(("tests", "benchmarks"))]


def test_a_source_distribution_has_what_its_tests_need(tmp_path: Path) -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("needs a git checkout, to tell files of the project from others")
    files = [line for line in listed.stdout.splitlines() if (ROOT / line).exists()]
    for name in files:
        target = tmp_path / "sources" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, target)
    command = [sys.executable, "-c", BUILD_SDIST, str(tmp_path)]
    subprocess.run(command, cwd=tmp_path / "sources", capture_output=True, check=True)
    (packed,) = tmp_path.glob("*.tar.gz")
    assert packed.name == f"crossalign-{crossalign.__version__}.tar.gz"
    with tarfile.open(packed) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    outside = (".github", ".gitignore")
    assert {name for name in files if not name.startswith(outside)} <= held


def test_recipes_are_found_by_name(tmp_path: Path) -> None:
    assert find_settings("recipe:xglm-564m") == RECIPES / "xglm-564m.yaml"
    assert read_settings(Path("recipe:large-batch"))["batch_size"] == 16384
    assert find_settings("other.yaml") == Path("other.yaml")
    for name in ("recipe:none", "recipe:accelerate/fsdp2", "recipe:../../x"):
        with pytest.raises(DataError, match=f"{re.escape(name)}: no such recipe; there are bloom"):
            find_settings(name)


def test_the_project_says_one_version_and_where_to_find_it() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["dynamic"] == ["version"] and "version" not in project
    assert {"Homepage", "Documentation", "Changelog", "Issues"} <= project["urls"].keys()
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == crossalign.__version__
    assert citation["cff-version"] and citation["authors"] and citation["references"]
    assert citation["license"] == project["license"]
    assert f"## [{crossalign.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_extras_are_described_where_the_installation_is() -> None:
    """Every extra is named in the documentation, and no other."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    page = (ROOT / "docs" / "installation.md").read_text()
    assert set(re.findall(r"^\| `(\w+)` \|", page, flags=re.MULTILINE)) == (
        project["optional-dependencies"].keys()
    )


@pytest.mark.parametrize("path", sorted((ROOT / ".github").rglob("*.yml")), ids=lambda p: p.name)
def test_workflows_and_forms_are_valid_yaml(path: Path) -> None:
    held = yaml.safe_load(path.read_text())
    assert isinstance(held, dict)
    for job in held.get("jobs", {}).values():
        assert job["runs-on"] and job["steps"]
