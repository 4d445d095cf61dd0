"""In-context learning on choice tasks: which choice makes the most probable text.

evaluate_in_context takes a model that is in memory, so that training can call it between steps.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crossalign.evaluation.choice_scoring import Candidate, ChoiceScorer, TooLongError
from crossalign.evaluation.in_context_records import accuracy, logged, source
from crossalign.evaluation.tasks.items import TASKS, Item, TaskData, choose_demos, related_items
from crossalign.evaluation.tasks.prompts import paper_prompt

if TYPE_CHECKING:
    from torch import nn
    from torch.distributed import ProcessGroup
    from transformers import PreTrainedTokenizerBase

    from crossalign.evaluation.finished_parts import PartsOfModel
    from crossalign.evaluation.tasks.lm_eval_prompts import LmEvalPrompt
    from crossalign.evaluation.tasks.prompts import PaperPrompt

PROMPTS = ("paper", "lm-eval")
TOO_LONG = ("error", "skip")


@dataclass(frozen=True)
class InContextSettings:
    """What is asked; checked when made, before any file or model is touched.

    Raises:
        ValueError: a value that cannot be; the message names it.
    """

    tasks: Sequence[str]
    languages: Sequence[str]
    shots: Sequence[int] = (0,)
    seeds: Sequence[int] = (0,)  # which demonstrations; without any, one run does
    limit: int | None = None  # the first items of each task and language
    prompts: str = "paper"
    prompt_language: str | None = None  # None: that of the sample
    too_long: str = "error"  # items that exceed the model even without demonstrations

    def __post_init__(self) -> None:
        for name in ("tasks", "languages", "shots", "seeds"):
            values = list(getattr(self, name))
            if not values or len(set(values)) < len(values):
                raise ValueError(f"{name} must be a list without repeats, got {values}")
        for task in self.tasks:
            if task not in TASKS:
                raise ValueError(f"tasks must be of {', '.join(TASKS)}, got {task!r}")
        if min(self.shots) < 0:
            raise ValueError(f"shots must not be negative, got {min(self.shots)}")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit must be at least 1, got {self.limit}")
        for name, known in (("prompts", PROMPTS), ("too_long", TOO_LONG)):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"{name} must be of {', '.join(known)}, got {getattr(self, name)!r}"
                )
        for language in self.languages:
            if not any(language in TASKS[task].languages for task in self.tasks):
                raise ValueError(f"languages: none of {', '.join(self.tasks)} has {language!r}")
        if self.prompts == "paper":
            for task, language in self.pairs:
                paper_prompt(task, self.prompt_language or language, None)

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """The tasks with those of the languages that they have."""
        return [
            (t, each) for t in self.tasks for each in self.languages if each in TASKS[t].languages
        ]

    @property
    def left_out(self) -> list[tuple[str, str]]:
        """Tasks with languages that they do not have."""
        return [
            (t, each) for t in self.tasks for each in self.languages if (t, each) not in self.pairs
        ]


@dataclass(frozen=True)
class Evaluation:
    """records: one object per task, language, shots and seed. items: one per item of each."""

    records: list[dict[str, Any]]
    items: list[dict[str, Any]]


def read_task_data(settings: InContextSettings, data: Path | str) -> list[TaskData]:
    """Every file that the settings need, so that a bad one stops the run before it starts.

    data: a folder of files, or the word "hub" for the Hugging Face hub.
    """
    from crossalign.evaluation.tasks import files, hub

    found = []
    for task, language in settings.pairs:
        splits = [
            hub.read_split(task, language, split)
            if data == "hub"
            else files.read_split(Path(data), task, language, split)
            for split in (["test", "demos"] if max(settings.shots) else ["test"])
        ]
        found.append(TaskData(task, language, splits[0], splits[1] if len(splits) > 1 else None))
    return found


def evaluate_in_context(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    data: Path | str | Sequence[TaskData],
    settings: InContextSettings,
    *,
    batch_size: int = 8,
    progress: bool = False,
    group: ProcessGroup | None = None,
    finished: PartsOfModel | None = None,
) -> Evaluation:
    """Accuracy of a live model on the tasks and languages of the settings.

    Demonstrations are dropped from the front where an item would not fit into the model's
    positions with all of them; each record counts such items. An item that does not fit without
    any raises, or with too_long="skip" is left out of the accuracy and counted. No text is cut.

    Args:
        model, tokenizer: as ChoiceScorer; both are left as they were.
        data: a folder of task files, or what read_task_data returned.
        settings: what to evaluate.
        batch_size: texts run at once; in float32 no score depends on it.
        progress: show bars.
        group: processes that hold the same model: every item is scored once, by one of them, and
            all get the whole result. None: only this process.
        finished: where each record and its items are kept when they are there, and taken from in
            place of scoring; without a group. None: nowhere.

    Returns:
        Records and per-item log, plain values that JSON can hold.

    Raises:
        ImportError: lm-eval is not installed.
        DataError: a file is missing, cut off or malformed.
        ValueError: too few demonstrations, a text too long, a score that is NaN.
    """
    if isinstance(data, str | Path):
        data = read_task_data(settings, data)
    scorer = ChoiceScorer(model, tokenizer, batch_size=batch_size, progress=progress, group=group)
    records, log = [], []
    # All of them before the first score: what does not fit is known from only the texts.
    for asked in [*_all_asked(data, scorer, settings)]:
        found = finished.get(asked.key) if finished else None
        if found is None:
            if progress:
                shown = f"{asked.part.task} {asked.part.language}, {asked.shots} shots"
                print(shown, file=sys.stderr)
            found = _evaluate(asked, scorer, settings)
            if finished:
                finished.add(asked.key, *found)
        record, items = found
        records.append(record)
        log += items
    return Evaluation(records, log)


def check_items(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    data: Sequence[TaskData],
    settings: InContextSettings,
) -> None:
    """Raises as evaluate_in_context would for items, without a score; the model may have no weights
    (on the device "meta")."""
    for _ in _all_asked(data, ChoiceScorer(model, tokenizer), settings):
        pass


@dataclass(frozen=True)
class _Asked:
    """The items of one record, with their demonstrations and choices."""

    part: TaskData
    prompt: PaperPrompt | LmEvalPrompt
    shots: int
    seed: int | None
    items: list[tuple[Item, list[Item], list[Candidate]]]
    skipped: list[str]

    @property
    def key(self) -> dict[str, Any]:
        part = self.part
        return {
            **{"task": part.task, "language": part.language},
            **{"shots": self.shots, "seed": self.seed},
        }


def _all_asked(
    data: Sequence[TaskData], scorer: ChoiceScorer, settings: InContextSettings
) -> Iterator[_Asked]:
    for part in data:
        prompt = _prompt(part, settings, scorer.tokenizer)
        for shots in settings.shots:
            for seed in settings.seeds if shots else (None,):
                yield _asked(part, prompt, scorer, settings, shots, seed)


def _prompt(
    part: TaskData, settings: InContextSettings, tokenizer: PreTrainedTokenizerBase
) -> PaperPrompt | LmEvalPrompt:
    language = settings.prompt_language or part.language
    if settings.prompts == "paper":
        return paper_prompt(part.task, language, tokenizer.eos_token)
    from crossalign.evaluation.tasks.lm_eval_prompts import LmEvalPrompt

    return LmEvalPrompt(part.task, language, part.test, part.demos)


def _asked(
    part: TaskData,
    prompt: PaperPrompt | LmEvalPrompt,
    scorer: ChoiceScorer,
    settings: InContextSettings,
    shots: int,
    seed: int | None,
) -> _Asked:
    related = related_items(part.task)
    asked: list[tuple[Item, list[Item], list[Candidate]]] = []
    skipped: list[str] = []
    items = part.test.items[: settings.limit]
    for item in items:
        demos: list[Item] = []
        if seed is not None and part.demos is not None:
            demos = choose_demos(item, part.demos, shots, seed, related)
        candidates = prompt.candidates(item, demos)
        while demos and not all(map(scorer.fits, candidates)):
            demos = demos[1:]
            candidates = prompt.candidates(item, demos)
        if all(map(scorer.fits, candidates)):
            asked.append((item, demos, candidates))
        elif settings.too_long == "skip":
            skipped.append(item.id)
        else:
            longest = max(map(scorer.num_positions, candidates))
            raise TooLongError(
                f"item {item.id} of {part.task} in {part.language} needs {longest} positions but "
                f"the model has {scorer.limit}; too_long='skip' (--too-long skip) leaves such "
                "items out"
            )
    if not asked:
        raise ValueError(f"no item of {part.task} in {part.language} fits into the model")
    return _Asked(part, prompt, shots, seed, asked, skipped)


def _evaluate(
    given: _Asked, scorer: ChoiceScorer, settings: InContextSettings
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """One record and the log of its items."""
    part, prompt, shots, asked = given.part, given.prompt, given.shots, given.items
    key = given.key
    scores = iter(scorer.log_probabilities([each for _, _, found in asked for each in found]))
    log = [logged(key, item, demos, [next(scores) for _ in found]) for item, demos, found in asked]
    assert len(log) + len(given.skipped) == len(part.test.items[: settings.limit])
    counts = {
        "items_with_fewer_shots": sum(len(demos) < shots for _, demos, _ in asked),
        "items_too_long": given.skipped,
    }
    example = asked[0][2][asked[0][0].label]
    shown = {
        **prompt.record(),
        "language": settings.prompt_language or part.language,
        "prefix": scorer.prefix,
        "example": example.context + example.continuation,
    }
    return {**key, **accuracy(part, log), **counts, "prompt": shown, **source(part)}, log
