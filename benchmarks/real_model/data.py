"""The text of align_real_model: pairs and instructions to train on, lines to choose by, lines to
test on; no test line is in the other two.

Pairs: NTREX (news) and TICO-19 (medicine), English with each other language; the last lines of
NTREX are kept for choosing. Instructions: the seed tasks in English and Chinese, and questions of
XQuAD, whose paragraphs are cut round the answer so that a text fits into a few dozen tokens.
Test: FLORES devtest.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from crossalign.data.builders import TrainingItem, build_items
from crossalign.data.instruction_files import Records, keep_common_ids, read_records
from crossalign.data.pairs import Pair
from crossalign.files.text import read_lines

# code -> (NTREX, TICO-19 or "", FLORES)
LANGUAGES = {
    "en": ("eng", "", "eng_Latn"),
    "ar": ("arb", "ar", "arb_Arab"),
    "de": ("deu", "", "deu_Latn"),
    "es": ("spa", "es_LA", "spa_Latn"),
    "fr": ("fra", "fr", "fra_Latn"),
    "hi": ("hin", "hi", "hin_Deva"),
    "id": ("ind", "id", "ind_Latn"),
    "ru": ("rus", "ru", "rus_Cyrl"),
    "sw": ("swa", "sw", "swh_Latn"),
    "zh": ("zho-CN", "zh", "zho_Hans"),
}
PIVOT = "en"
SEED_TASK_LANGUAGES = ("en", "zh")
QUESTION_LANGUAGES = ("en", "ar", "de", "es", "hi", "ru", "zh")
NUM_CHOOSING_LINES = 400  # of the end of NTREX
LONGEST_SENTENCE = 160  # characters of a training sentence: what a small machine can afford
AROUND_ANSWER = 60  # characters of a paragraph kept on each side of the answer


class RealModelData(NamedTuple):
    """items: instructions; rehearsal: the sentences of the pairs as plain texts, so that next-token
    prediction is kept up in every language. choosing, test: language -> lines, line k the same in
    every language."""

    pairs: list[Pair]
    items: list[TrainingItem]
    rehearsal: list[TrainingItem]
    choosing: dict[str, list[str]]
    test: dict[str, list[str]]


def load_data(data: Path, num_choosing: int, num_test: int) -> RealModelData:
    """num_choosing, num_test: lines in each language."""
    ntrex = {code: _ntrex(data, names[0]) for code, names in LANGUAGES.items()}
    pairs = [
        pair
        for code, (_, tico, _) in LANGUAGES.items()
        if code != PIVOT
        for pair in [
            *_pairs(ntrex[PIVOT], ntrex[code], code, NUM_CHOOSING_LINES),
            *(_tico_pairs(data, tico, code) if tico else []),
        ]
    ]
    random.Random("pairs").shuffle(pairs)
    items = _items(data)
    random.Random("items").shuffle(items)
    choosing = {code: lines[-num_choosing:] for code, lines in ntrex.items()}
    folder = data / "eval" / "flores200"
    test = {
        code: read_lines(folder / f"{flores}.devtest.gz")[:num_test]
        for code, (_, _, flores) in LANGUAGES.items()
    }
    return RealModelData(pairs, items, _rehearsal(pairs), choosing, test)


def fitting(items: list[TrainingItem], tokenizer: Any, max_length: int) -> list[TrainingItem]:
    """The items of which nothing is cut, EOS included: a cut text may have lost its answer."""
    lengths = [len(ids) for ids in tokenizer([item["clm_text"] for item in items])["input_ids"]]
    return [item for item, length in zip(items, lengths, strict=True) if length < max_length]


def _ntrex(data: Path, name: str) -> list[str]:
    part = "src" if name == "eng" else "ref"
    lines = read_lines(data / "pairs" / "ntrex" / f"newstest2019-{part}.{name}.txt.gz")
    return [line.strip() for line in lines]


def _tico_pairs(data: Path, name: str, code: str) -> list[Pair]:
    folder = data / "pairs" / "tico19" / f"en-{name}"
    sides = [read_lines(folder / f"tico19-test.{each}.gz") for each in ("en", name)]
    return _pairs(sides[0], sides[1], code, 0)


def _pairs(english: Sequence[str], other: Sequence[str], code: str, left_out: int) -> list[Pair]:
    """left_out: lines at the end that are not for training."""
    both = list(zip(english, other, strict=True))
    return [
        Pair(source.strip(), target.strip(), PIVOT, code)
        for source, target in both[: len(both) - left_out]
        if source.strip() and target.strip() and len(source) <= LONGEST_SENTENCE
    ]


def _rehearsal(pairs: Sequence[Pair]) -> list[TrainingItem]:
    """As many texts of each language, in turn: English ones stand in every pair."""
    texts: dict[str, list[str]] = {}
    for pair in pairs:
        texts.setdefault(pair.target_language, []).append(pair.target)
    texts[PIVOT] = list(dict.fromkeys(pair.source for pair in pairs))
    return [
        {"sent0": "", "sent1": "", "clm_text": text, "clm_prompt_len": 0}
        for several in zip(*texts.values(), strict=False)
        for text in several
    ]


def _items(data: Path) -> list[TrainingItem]:
    folder = data / "instruct"
    tasks, _ = keep_common_ids(read_records(folder / "seed_tasks", SEED_TASK_LANGUAGES))
    short = {
        record["id"]
        for record in tasks[PIVOT]
        if len(record["instruction"] + record["input"] + record["output"]) <= 2 * LONGEST_SENTENCE
    }
    tasks = {code: [row for row in rows if row["id"] in short] for code, rows in tasks.items()}
    questions: Records = {
        code: [_cut(record) for record in rows]
        for code, rows in read_records(folder / "xquad", QUESTION_LANGUAGES).items()
    }
    return [
        *build_items("bilingual", tasks, SEED_TASK_LANGUAGES, repeats=3, seed=0),
        *build_items("crosslingual", questions, QUESTION_LANGUAGES, repeats=1, seed=0),
    ]


def _cut(record: dict[str, str]) -> dict[str, str]:
    """The record with its paragraph cut round the first place of the answer."""
    text, answer = record["input"], record["output"]
    start = max(text.find(answer), 0)
    part = text[max(start - AROUND_ANSWER, 0) : start + len(answer) + AROUND_ANSWER]
    return {**record, "input": part.strip()}
