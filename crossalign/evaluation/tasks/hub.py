"""The choice tasks from the Hugging Face hub, where the network allows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from crossalign.evaluation.tasks.files import pawsx_split
from crossalign.evaluation.tasks.items import Item, Split, check_task_language, duplicates
from crossalign.evaluation.tasks.xcopa import repair_questions, xcopa_item
from crossalign.files.text import DataError, checked_text

# Task -> repository, split of test items, split of demonstrations.
_SETS = {
    "xnli": ("facebook/xnli", "test", "validation"),
    "pawsx": ("google-research-datasets/paws-x", "test", "validation"),
    "xcopa": ("cambridgeltl/xcopa", "test", "validation"),
    "xstorycloze": ("juletxara/xstory_cloze", "eval", "train"),
    "xwinograd": ("Muennighoff/xwinograd", "test", "test"),
}
_Rows = Sequence[Mapping[str, Any]]


def read_split(task: str, language: str, split: str) -> Split:
    """Items of one task, language and split ("test" or "demos"), as files.read_split.

    Raises:
        ImportError: `datasets` is not installed.
        DataError: the hub cannot be reached, or has no such set; English COPA's answers are not
            public there.
        ValueError: the task has no such language.
    """
    check_task_language(task, language)
    if (task, language) == ("xcopa", "en"):
        raise DataError("the hub has no answers of English COPA; give --data a folder with it")
    name, rows = _load(task, language, split)
    if task == "pawsx":
        table = [
            (f"{name}, row {k}", str(row["id"]), {**row, "label": str(row["label"])})
            for k, row in enumerate(rows)
        ]
        return pawsx_split(table, (name,))
    items = [_ITEMS[task](k, row, f"{name}, row {k}") for k, row in enumerate(rows)]
    if task == "xwinograd":
        return Split(items, len(items), (name,), {"exact_duplicates_kept": duplicates(items)})
    if task == "xcopa" and language != "zh":
        reference, right = _load(task, "zh", split)
        right_items = [xcopa_item(k, row, f"{reference}, row {k}") for k, row in enumerate(right)]
        items, repaired = repair_questions(items, right_items, name, reference)
        notes = {"repaired_questions": repaired, "questions_from": reference}
        return Split(items, len(items), (name,), notes)
    return Split(items, len(items), (name,))


def _load(task: str, language: str, split: str) -> tuple[str, _Rows]:
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise ImportError(
            f"the hub is read with `datasets` ({error}); pip install 'crossalign[hub]'"
        ) from error
    repository, test, demos = _SETS[task]
    config = "jp" if (task, language) == ("xwinograd", "ja") else language
    part = test if split == "test" else demos
    name = f"hub:{repository}/{config}/{part}"
    try:
        return name, datasets.load_dataset(repository, config, split=part)
    # `datasets` and the hub's client raise many kinds, connection errors of requests among them.
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(
            f"{name} cannot be read ({type(error).__name__}: {reason}); without a network, give "
            "--data a folder of files"
        ) from error


def _xnli(row: int, record: Mapping[str, Any], where: str) -> Item:
    fields = {key: checked_text(record[key], key, where) for key in ("premise", "hypothesis")}
    return Item(row, str(row), fields, int(record["label"]))


def _story(row: int, record: Mapping[str, Any], where: str) -> Item:
    columns = {f"sentence{k}": f"input_sentence_{k}" for k in range(1, 5)}
    columns |= {f"ending{k}": f"sentence_quiz{k}" for k in (1, 2)}
    fields = {key: checked_text(record[column], column, where) for key, column in columns.items()}
    return Item(row, str(record["story_id"]), fields, int(record["answer_right_ending"]) - 1)


def _winograd(row: int, record: Mapping[str, Any], where: str) -> Item:
    before, gap, after = checked_text(record["sentence"], "sentence", where).partition("_")
    if not gap:
        raise DataError(f"{where}: the sentence has no _ for the candidates")
    options = {key: checked_text(record[key], key, where) for key in ("option1", "option2")}
    fields = {"before": before, "after": after.rstrip(), **options}
    return Item(row, str(row), fields, int(record["answer"]) - 1)


_ITEMS: dict[str, Callable[[int, Mapping[str, Any], str], Item]] = {
    "xnli": _xnli,
    "xcopa": xcopa_item,
    "xstorycloze": _story,
    "xwinograd": _winograd,
}
