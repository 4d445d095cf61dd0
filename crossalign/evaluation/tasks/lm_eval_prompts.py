"""lm-eval's own prompts for the five tasks, fed with items that are already read.

The task is lm-eval's YAML file as installed; only where its documents come from is replaced.
Demonstrations are those that were chosen here, put together as lm-eval does.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from crossalign.evaluation.choice_scoring import Candidate
from crossalign.evaluation.tasks.items import Item, Split

_FILES = {
    "xnli": "xnli/xnli_{}.yaml",
    "pawsx": "paws-x/paws_{}.yaml",
    "xcopa": "xcopa/default_{}.yaml",
    "xstorycloze": "xstorycloze/default_{}.yaml",
    "xwinograd": "xwinograd/xwinograd_{}.yaml",
}
_SHOWN = ("doc_to_text", "doc_to_choice", "doc_to_target", "target_delimiter", "fewshot_delimiter")


class LmEvalPrompt:
    """The prompt of one task in one language.

    Args:
        task, language: which of lm-eval's files.
        test, demos: all items that may be asked for; demos may be None.

    Raises:
        ValueError: lm-eval has no such task.
    """

    def __init__(self, task: str, language: str, test: Split, demos: Split | None) -> None:
        with _quiet():
            self._task = _load(task, language, test, demos)
            documents = {"test": self._task.test_docs(), "demos": self._task.fewshot_docs()}
        self._docs = {
            split: {doc["item"]: doc for doc in docs} for split, docs in documents.items()
        }
        self._name = self._task.config.task

    def candidates(self, item: Item, demos: Sequence[Item]) -> list[Candidate]:
        """What the model is asked, one continuation (or context) for each choice."""
        self._task.sampler = _Chosen([self._docs["demos"][demo.row] for demo in demos])
        doc = self._docs["test"][item.row]
        context = self._task.fewshot_context(doc, len(demos))
        return [Candidate(*each.args) for each in self._task.construct_requests(doc, context)]

    def record(self) -> dict[str, Any]:
        """What a result must say for its prompt to be known."""
        config = self._task.config
        texts = {name: _shown(getattr(config, name)) for name in _SHOWN}
        return {"source": "lm-eval", "task": self._name, "version": self._task.VERSION, **texts}


class _Chosen:
    """Stands in for lm-eval's sampler."""

    def __init__(self, docs: list[dict[str, Any]]) -> None:
        self.docs = docs

    def sample(self, n: int, eval_doc: Any = None) -> list[dict[str, Any]]:
        return self.docs[:n]


def _load(task: str, language: str, test: Split, demos: Split | None) -> Any:
    import datasets
    import lm_eval.tasks
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks._yaml_loader import load_yaml

    code = {"ja": "jp"}.get(language, language) if task == "xwinograd" else language
    path = Path(lm_eval.tasks.__file__).parent / _FILES[task].format(code)
    if not path.exists():
        raise ValueError(f'lm-eval has no prompts for {task} in "{language}"; use --prompts paper')
    to_doc = _DOCUMENTS[task]
    documents = {
        name: [{"item": item.row, **to_doc(item.fields, item.label)} for item in split.items]
        for name, split in (("test", test), ("demos", demos or test))
    }
    config = load_yaml(path)
    config |= {
        "custom_dataset": lambda **_: {
            name: datasets.Dataset.from_list(rows) for name, rows in documents.items()
        },
        "test_split": "test",
        "fewshot_split": "demos",
        "training_split": None,
        "validation_split": None,
    }
    return ConfigurableTask(config=config)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without lm-eval's hints for its command line and the bars of `datasets`."""
    import datasets

    logger = logging.getLogger("lm_eval")
    level, bars = logger.level, datasets.is_progress_bar_enabled()
    logger.setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        logger.setLevel(level)
        if bars:
            datasets.enable_progress_bars()


def _shown(value: Any) -> Any:
    """A template as it is; a function of lm-eval by its name and the words it is given."""
    if isinstance(value, functools.partial):
        return f"{value.func.__name__}, {value.keywords}"
    return value.__name__ if callable(value) else value


def _story(fields: Mapping[str, str], label: int) -> dict[str, Any]:
    sentences = {f"input_sentence_{k}": fields[f"sentence{k}"] for k in range(1, 5)}
    endings = {f"sentence_quiz{k}": fields[f"ending{k}"] for k in (1, 2)}
    return {**sentences, **endings, "answer_right_ending": label + 1}


def _winograd(fields: Mapping[str, str], label: int) -> dict[str, Any]:
    return {
        "sentence": f"{fields['before']}_{fields['after']}",
        "option1": fields["option1"],
        "option2": fields["option2"],
        "answer": str(label + 1),
    }


def _same(fields: Mapping[str, str], label: int) -> dict[str, Any]:
    return {**fields, "label": label}


# The columns that lm-eval's files expect, as its data sets on the hub have them.
_DOCUMENTS: dict[str, Callable[[Mapping[str, str], int], dict[str, Any]]] = {
    "xnli": _same,
    "pawsx": _same,
    "xcopa": _same,
    "xstorycloze": _story,
    "xwinograd": _winograd,
}
