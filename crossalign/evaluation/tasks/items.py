"""The items of a choice task, whatever file they came from, and the demonstrations of an item."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Item:
    """One question with its choices, each a text of `fields` or a label word of the prompt."""

    row: int  # 0-based place in its file: the same in every language of a parallel set
    id: str
    fields: Mapping[str, str]
    label: int


@dataclass(frozen=True)
class Split:
    """What one file holds."""

    items: list[Item]
    rows: int  # in the file, rows that were left out included
    files: tuple[str, ...]
    notes: Mapping[str, Any] = field(default_factory=dict)  # what was dropped, repaired, doubled


@dataclass(frozen=True)
class Task:
    """What is known of a task apart from its files."""

    num_choices: int
    codes: str
    release_rows: Mapping[str, int]  # split -> rows of a file of the whole release
    license: str

    @property
    def languages(self) -> tuple[str, ...]:
        return tuple(self.codes.split())

    @property
    def chance(self) -> float:
        return 1 / self.num_choices


# The demonstrations of XWinograd, which has one split, come from its other items.
TASKS = {
    "xnli": Task(
        3,
        "ar bg de el en es fr hi ru sw th tr ur vi zh",
        {"test": 5010, "demos": 2490},
        "CC BY-NC 4.0",
    ),
    "pawsx": Task(
        2,
        "de en es fr ja ko zh",
        {"test": 2000, "demos": 2000},
        "free use, acknowledging Google LLC",
    ),
    "xcopa": Task(
        2,
        "en et ht id it qu sw ta th tr vi zh",
        {"test": 500, "demos": 100},
        "CC BY 4.0; English COPA: not stated",
    ),
    "xstorycloze": Task(
        2,
        "ar en es eu hi id my ru sw te zh",
        {"test": 1511, "demos": 360},
        "CC BY-SA 4.0; the English original needs a request",
    ),
    "xwinograd": Task(2, "en fr ja pt ru zh", {}, "Apache-2.0"),
}


def check_task_language(task: str, language: str) -> None:
    if task not in TASKS:
        raise ValueError(f"tasks must be of {', '.join(TASKS)}, got {task!r}")
    if language not in TASKS[task].languages:
        known = " ".join(TASKS[task].languages)
        raise ValueError(f'{task} has no language "{language}"; it has {known}')


@dataclass(frozen=True)
class TaskData:
    """What is asked of one task in one language."""

    task: str
    language: str
    test: Split
    demos: Split | None  # None where no shots are asked for


def choose_demos(
    item: Item,
    pool: Split,
    shots: int,
    seed: int,
    related: Callable[[Item, Item], bool],
) -> list[Item]:
    """Demonstrations of one item, fixed only by the seed and the item's id.

    The first k of them are the same for every greater number of shots, and since rows are drawn,
    the languages of a parallel set show the same items unless a language lacks a row.

    Raises:
        ValueError: the pool has too few items that are not related to this one.
    """
    by_row = {other.row: other for other in pool.items}
    draw = random.Random(f"{seed}/{item.id}")
    chosen: list[Item] = []
    seen: set[int] = set()
    while len(chosen) < shots:
        if len(seen) == pool.rows:
            raise ValueError(
                f"{shots} demonstrations wanted for item {item.id}, but {pool.files[0]} has only "
                f"{len(chosen)} that are unrelated to it"
            )
        row = draw.randrange(pool.rows)
        if row in seen:
            continue
        seen.add(row)
        demo = by_row.get(row)
        if demo is not None and not related(item, demo):
            chosen.append(demo)
    return chosen


def related_items(task: str) -> Callable[[Item, Item], bool]:
    """Whether a demonstration would give an item away: the same item, its twin, its source."""
    return {"pawsx": _share_sentence, "xwinograd": _are_twins}.get(task, _are_strangers)


def _are_strangers(item: Item, demo: Item) -> bool:
    """Demonstrations from a split of their own, whose rows share nothing with the test."""
    return False


def _share_sentence(item: Item, demo: Item) -> bool:
    """A first sentence of PAWS-X occurs in several rows, also across its splits."""
    return item.fields["sentence1"] == demo.fields["sentence1"]


# Of the release's English twins 98 in 100 share half of their letter pairs or more, of its other
# sentences 2 in 1,000.
_TWIN_OVERLAP = 0.5


def _are_twins(item: Item, demo: Item) -> bool:
    """XWinograd: the item itself, a neighbor, the same candidates, or nearly the same words."""
    names = [{each.fields["option1"], each.fields["option2"]} for each in (item, demo)]
    if abs(item.row - demo.row) <= 1 or names[0] == names[1]:
        return True
    ours, theirs = (_letter_pairs(each) for each in (item, demo))
    return 2 * len(ours & theirs) >= _TWIN_OVERLAP * (len(ours) + len(theirs))


def _letter_pairs(item: Item) -> set[str]:
    text = "".join((item.fields["before"] + item.fields["after"]).lower().split())
    return {text[i : i + 2] for i in range(len(text) - 1)}


def duplicates(items: Sequence[Item]) -> int:
    """Items whose fields are all in an earlier item too."""
    return len(items) - len({tuple(sorted(item.fields.items())) for item in items})
