"""In-context learning on choice tasks: which choice makes the most probable text.

evaluate_in_context takes a model that is in memory, so that training can call it between steps.
"""

from __future__ import annotations

import hashlib
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crossalign.evaluation.choice_scoring import Candidate, ChoiceScorer, TooLongError
from crossalign.evaluation.statistics import wilson_interval
from crossalign.evaluation.tasks.items import TASKS, Item, Split, choose_demos, related_items
from crossalign.evaluation.tasks.prompts import paper_prompt

if TYPE_CHECKING:
    from torch import nn
    from torch.distributed import ProcessGroup
    from transformers import PreTrainedTokenizerBase

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
class TaskData:
    """What is asked of one task in one language."""

    task: str
    language: str
    test: Split
    demos: Split | None  # None where no shots are asked for


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
            all get the whole result. None: this process alone.

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
    for part in data:
        prompt = _prompt(part, settings, tokenizer)
        for shots in settings.shots:
            for seed in settings.seeds if shots else (None,):
                if progress:
                    print(f"{part.task} {part.language}, {shots} shots", file=sys.stderr)
                record, items = _evaluate(part, prompt, scorer, settings, shots, seed)
                records.append(record)
                log += items
    return Evaluation(records, log)


def _prompt(
    part: TaskData, settings: InContextSettings, tokenizer: PreTrainedTokenizerBase
) -> PaperPrompt | LmEvalPrompt:
    language = settings.prompt_language or part.language
    if settings.prompts == "paper":
        return paper_prompt(part.task, language, tokenizer.eos_token)
    from crossalign.evaluation.tasks.lm_eval_prompts import LmEvalPrompt

    return LmEvalPrompt(part.task, language, part.test, part.demos)


def _evaluate(
    part: TaskData,
    prompt: PaperPrompt | LmEvalPrompt,
    scorer: ChoiceScorer,
    settings: InContextSettings,
    shots: int,
    seed: int | None,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """One record and the log of its items."""
    related = related_items(part.task)
    key = {"task": part.task, "language": part.language, "shots": shots, "seed": seed}
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
    scores = iter(scorer.log_probabilities([each for _, _, found in asked for each in found]))
    log = [_logged(key, item, demos, [next(scores) for _ in found]) for item, demos, found in asked]
    assert len(log) + len(skipped) == len(items)
    counts = {
        "items_with_fewer_shots": sum(len(demos) < shots for _, demos, _ in asked),
        "items_too_long": skipped,
    }
    example = asked[0][2][asked[0][0].label]
    shown = {
        **prompt.record(),
        "language": settings.prompt_language or part.language,
        "prefix": scorer.prefix,
        "example": example.context + example.continuation,
    }
    return {**key, **_accuracy(part, log), **counts, "prompt": shown, **_source(part)}, log


def _logged(
    key: Mapping[str, Any], item: Item, demos: Sequence[Item], scores: list[float]
) -> dict[str, Any]:
    prediction = max(range(len(scores)), key=scores.__getitem__)  # the first of equals
    return {
        **key,
        "id": item.id,
        "row": item.row,
        "label": item.label,
        "prediction": prediction,
        "correct": prediction == item.label,
        "log_probabilities": scores,
        "demonstrations": [demo.id for demo in demos],
    }


def _accuracy(part: TaskData, log: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    correct, total = sum(each["correct"] for each in log), len(log)
    labels = Counter(each["label"] for each in log)
    low, high = wilson_interval(correct, total)
    chance = TASKS[part.task].chance
    return {
        "accuracy": correct / total,
        "correct": correct,
        "items": total,
        "interval": [low, high],
        "chance": chance,
        "above_chance": low > chance,
        "most_frequent_label": max(labels.values()) / total,
        "ties": sum(_is_tie(each["log_probabilities"]) for each in log),
    }


def _is_tie(scores: Sequence[float]) -> bool:
    """Such an item counts as an answer of the first choice, as in lm-eval."""
    return sorted(scores)[-1] == sorted(scores)[-2]


def _source(part: TaskData) -> dict[str, Any]:
    """Where the items came from: files with their hashes, and what was done to their rows."""
    files = {}
    for split in (part.test, part.demos):
        for name in split.files if split else ():
            path = Path(name)
            hashed = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None
            files[name] = hashed
    whole = TASKS[part.task].release_rows.get("test", part.test.rows)
    return {
        "files_sha256": files,
        "licence": TASKS[part.task].licence,
        "rows": part.test.rows,
        "rows_of_release": whole,
        "notes": dict(part.test.notes),
        "demonstration_notes": dict(part.demos.notes) if part.demos else {},
    }
