"""Tasks from the hub: rows as its sets have them; no network, no package: a clear error."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from crossalign.evaluation.in_context import InContextSettings, read_task_data
from crossalign.evaluation.tasks import files
from crossalign.evaluation.tasks import hub as hub_tasks
from crossalign.files.text import DataError
from tests.support.evaluation_cases import COPA, NLI, PARAPHRASES, write_tasks

datasets = pytest.importorskip("datasets", reason="datasets is not installed")
LABELS = ("entailment", "neutral", "contradiction")


def hub_rows(repository: str, config: str, split: str) -> Any:
    """What the hub holds, by the columns on its pages."""
    if repository == "facebook/xnli":
        return [{"premise": a, "hypothesis": b, "label": LABELS.index(c)} for a, b, c in NLI]
    if repository == "google-research-datasets/paws-x":
        keys = ("id", "sentence1", "sentence2", "label")
        rows = [dict(zip(keys, row, strict=True)) for row in PARAPHRASES]
        return [{**row, "id": int(row["id"]), "label": int(row["label"])} for row in rows]
    if repository == "cambridgeltl/xcopa":
        columns = ("premise", "choice1", "choice2", "question", "label", "idx")
        copies: list[dict[str, Any]] = [
            dict(zip(columns, (*row, k), strict=True)) for k, row in enumerate(COPA)
        ]
        return copies if config == "zh" else [{**row, "question": "effect"} for row in copies]
    if repository == "juletxara/xstory_cloze":
        sentences = {f"input_sentence_{k}": f"Sentence {k}." for k in range(1, 5)}
        endings = {"sentence_quiz1": "One.", "sentence_quiz2": "Two."}
        return [{"story_id": "s1", **sentences, **endings, "answer_right_ending": 2}]
    assert (repository, config, split) == ("Muennighoff/xwinograd", "jp", "test")
    options = {"option1": "Ann", "option2": "Zoe", "answer": "2"}
    return [{"sentence": "Ann saw Zoe when _ left.", **options}]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Any:
    calls = []

    def load_dataset(repository: str, config: str, *, split: str) -> Any:
        calls.append((repository, config, split))
        return hub_rows(repository, config, split)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return calls


@pytest.mark.parametrize("task", ["xnli", "pawsx", "xcopa"])
def test_hub_and_files_give_the_same_items(hub: Any, tmp_path: Path, task: str) -> None:
    write_tasks(tmp_path, ["zh"])
    split = "demos" if task == "xnli" else "test"  # the test file of these cases is turned round
    local = files.read_split(tmp_path, task, "zh", split)
    found = hub_tasks.read_split(task, "zh", split)
    assert found.items == local.items and found.rows == local.rows
    assert found.files[0].startswith("hub:")


def test_hub_questions_of_xcopa_are_repaired(hub: Any) -> None:
    found = hub_tasks.read_split("xcopa", "th", "test")
    assert found.notes == {
        "repaired_questions": sum(row[3] == "cause" for row in COPA),
        "questions_from": "hub:cambridgeltl/xcopa/zh/test",
    }
    assert [item.fields["question"] for item in found.items] == [row[3] for row in COPA]
    with pytest.raises(DataError, match="the hub has no answers of English COPA; give --data"):
        hub_tasks.read_split("xcopa", "en", "test")


def test_stories_and_schemas_of_the_hub(hub: Any) -> None:
    (story,) = hub_tasks.read_split("xstorycloze", "ru", "demos").items
    assert (story.id, story.label, story.fields["ending2"]) == ("s1", 1, "Two.")
    assert story.fields["sentence3"] == "Sentence 3."
    (schema,) = hub_tasks.read_split("xwinograd", "ja", "test").items
    assert (schema.label, schema.fields["before"]) == (1, "Ann saw Zoe when ")
    assert schema.fields["after"] == " left."
    assert hub[0] == ("juletxara/xstory_cloze", "ru", "train")


def test_schema_without_a_gap_is_named(hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    row = {"sentence": "No gap.", "option1": "a", "option2": "b", "answer": "1"}
    monkeypatch.setattr(datasets, "load_dataset", lambda *names, split: [row])
    with pytest.raises(
        DataError, match="hub:Muennighoff/xwinograd/en/test, row 0: the sentence has"
    ):
        hub_tasks.read_split("xwinograd", "en", "test")


def test_data_hub_is_read_by_the_evaluation(hub: Any) -> None:
    (part,) = read_task_data(InContextSettings(["xnli"], ["fr"], shots=[2]), "hub")
    assert len(part.test.items) == len(part.demos.items) == len(NLI)
    assert hub == [("facebook/xnli", "fr", "test"), ("facebook/xnli", "fr", "validation")]


def test_no_network_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*names: Any, split: str) -> None:
        raise ConnectionError("Couldn't reach\nthe hub")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(
        DataError,
        match=r"hub:facebook/xnli/de/test cannot be read \(ConnectionError: Couldn't reach the "
        r"hub\); without a network, give --data a folder",
    ):
        hub_tasks.read_split("xnli", "de", "test")


def test_missing_package_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(
        ImportError, match=r"the hub is read with `datasets` .*pip install 'crossalign\[hub\]'"
    ):
        hub_tasks.read_split("xnli", "de", "test")
