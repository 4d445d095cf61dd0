"""Documents are true: Python runs as printed, commands parse, links and names lead somewhere."""

from __future__ import annotations

import doctest
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import yaml

import crossalign
from benchmarks import report
from benchmarks.provenance import RESULTS
from crossalign.alignment import TrainingConfig, align
from crossalign.cli.main import build_parser
from crossalign.cli.settings_file import find_settings
from crossalign.data import open_pairs
from tests.support.hosts import load_drop_in
from tests.support.tiny_models import tiny_model, tiny_tokenizer
from tests.support.training import make_pairs

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", flags=re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\(([^)\s]+)\)")


def blocks(*languages: str) -> list[Any]:
    """(page, text) of every block of code in one of the languages."""
    return [
        pytest.param(page, text, id=f"{page.name}-{number}")
        for page in PAGES
        for number, (language, text) in enumerate(BLOCK.findall(page.read_text()))
        if language in languages
    ]


@pytest.fixture
def names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data_root: Path) -> Iterator[Any]:
    """What a page takes as given: a model, its tokenizer, sentences, embeddings, files, a group."""
    pairs = make_pairs(6)
    (tmp_path / "train.tsv").write_text("".join(f"{p.source}\t{p.target}\n" for p in pairs))
    (tmp_path / "DATA").symlink_to(data_root / "eval")
    monkeypatch.chdir(tmp_path)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    given = {
        **{"torch": torch, "Path": Path, "align": align, "open_pairs": open_pairs},
        **{"model": tiny_model("gpt2"), "tokenizer": tiny_tokenizer(), "pairs": pairs},
        **{"english": [p.source for p in pairs], "german": [p.target for p in pairs]},
        "config": TrainingConfig(batch_size=2, steps=1, device="cpu"),
        "query": torch.randn(4, 8, requires_grad=True),
        **{"key": torch.randn(4, 8), "negatives": torch.randn(3, 8), "group": None},
    }
    from crossalign import fused_contrastive_loss

    yield given | {"fused_contrastive_loss": fused_contrastive_loss}
    dist.destroy_process_group()


# Sizes of an example that a tiny model on a CPU need not have.
SMALLER = {
    'open_pairs([Path("train.tsv.gz")]': 'open_pairs([Path("train.tsv")]',
    "layer=(1, 2), batch_size=256": 'layer=(1, 2), batch_size=2, steps=1, device="cpu"',
    "limit=200": 'limit=2, too_long="skip"',
}


@pytest.mark.parametrize(("page", "text"), blocks("python"))
def test_python_runs_as_printed(page: Path, text: str, names: dict[str, Any]) -> None:
    if "evaluate_in_context" in text:
        pytest.importorskip("lm_eval")
    for host in re.findall(r"^from crossalign\.integrations\.(\w+)", text, re.MULTILINE):
        load_drop_in(host)
    for printed, small in SMALLER.items():
        text = text.replace(printed, small)
    exec(compile(text, page.name, "exec"), names)


def test_the_example_of_the_readme_learns_what_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / "README.md").read_text()
    example, *_ = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    printed = re.findall(r"^# step (\d+): loss ([\d.]+), accuracy (\d+)%", example, re.MULTILINE)
    exec(compile(example, "README.md", "exec"), {})
    got = re.findall(r"step (\d+): loss ([\d.]+), accuracy (\d+)%", capsys.readouterr().out)
    assert [step for step, _, _ in got] == [step for step, _, _ in printed] != []
    for (_, loss, accuracy), (_, said_loss, said_accuracy) in zip(got, printed, strict=True):
        assert float(loss) == pytest.approx(float(said_loss), abs=0.02)
        assert float(accuracy) == pytest.approx(float(said_accuracy), abs=2)


def commands(text: str) -> Iterator[list[str]]:
    """The words of each command of a shell block, its comments and prompts taken off."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line.removeprefix("$ "), comments=True)
        if words:
            yield words


@pytest.mark.parametrize(("page", "text"), blocks("bash", "sh", "console", ""))
def test_commands_parse(page: Path, text: str) -> None:
    """Flags and values of our commands are accepted; modules and files of others are there."""
    for words in commands(text):
        for flag in ("-m", "--config_file"):
            if flag in words:
                named = words[words.index(flag) + 1]
                module = ROOT / (named.replace(".", "/") if flag == "-m" else named)
                if named.startswith(("crossalign", "benchmarks")):
                    found = module.exists() or module.with_suffix(".py").exists()
                    assert found, f"{page.name}: {named}"
        start = next((n for n, word in enumerate(words) if word == "crossalign"), None)
        if start is None or words[0] in ("pip", "cd", "git"):
            continue
        flags = [word for word in words[start + 1 :] if word != "..."]
        for recipe in (word for word in flags if word.startswith("recipe:")):
            assert find_settings(recipe).exists()
        if "..." in words:  # the rest of that command is elsewhere on the page
            continue
        build_parser().parse_args(flags)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in LINK.findall(page.read_text()):
        if not link.startswith(("http", "#", "mailto")):
            assert (page.parent / link.partition("#")[0]).exists(), f"{page.name}: {link}"


def test_the_site_has_every_page() -> None:
    settings = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    listed = set(re.findall(r"'([\w./-]+\.md)'", str(settings["nav"])))
    assert listed == {page.name for page in (ROOT / "docs").glob("*.md")}


def test_the_reference_names_what_can_be_imported() -> None:
    import importlib

    named = re.findall(r"^::: (\S+)$", (ROOT / "docs" / "reference.md").read_text(), re.MULTILINE)
    for dotted in named:
        module, _, name = dotted.rpartition(".")
        assert getattr(importlib.import_module(module), name) is getattr(crossalign, name)
    assert len(named) > 15


def test_the_benchmark_tables_are_those_of_the_result_files() -> None:
    page = report.PAGE.read_text()
    results = report.read_results(sorted(RESULTS.glob("*.jsonl")))
    assert report.with_tables(page, report.render(results)) == page


def test_the_readme_is_a_front_page() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) < 120
    head = "\n".join(lines[:20])
    assert "make demo" in head and "make test" in head


@pytest.mark.parametrize("name", sorted(crossalign.__all__))
def test_the_example_of_a_docstring_runs(name: str, names: dict[str, Any]) -> None:
    """Every public name has one, and it prints what it says."""
    public = {each: getattr(crossalign, each) for each in crossalign.__all__}
    found = doctest.DocTestFinder(recurse=False).find(public[name], name, globs=names | public)
    assert found and found[0].examples
    torch.manual_seed(0)
    assert doctest.DocTestRunner().run(found[0]).failed == 0
