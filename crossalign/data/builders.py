"""The three builders of training items (AFP, NAACL 2024): a translation pair and a prompted text.

Seeded: the same data, languages, repeats and seed give the same items, byte for byte.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, TypedDict, get_args, overload

from crossalign.data.instruction_files import Records, checked_record
from crossalign.data.languages import LANGUAGE_NAMES, check_languages
from crossalign.data.pairs import Pair
from crossalign.data.permutation import Permutation
from crossalign.files.text import checked_text

Mode = Literal["bilingual", "crosslingual", "translation"]
MODES: tuple[Mode, ...] = get_args(Mode)
CROSS_PROBABILITY = 0.5  # the answer is in another language than the question
TURN_PROBABILITY = 0.5  # a direction is turned round


class TrainingItem(TypedDict):
    """sent0 and sent1 translate each other; the first clm_prompt_len characters of clm_text are
    the prompt, the rest is the answer that the model learns to give."""

    sent0: str
    sent1: str
    clm_text: str
    clm_prompt_len: int


def build_items(
    mode: Mode,
    data: Mapping[str, Sequence[Mapping[str, Any]]] | Sequence[Sequence[str]],
    languages: Sequence[str] | None = None,
    *,
    repeats: int = 3,
    seed: int = 0,
) -> list[TrainingItem]:
    """Training items for `align` and for `crossalign align --lm-data`.

    "bilingual": every record `repeats` times; the question's language is one of the two at random,
    the answer's is the other one with probability 1/2. The text is `{instruction} {input} Answer in
    {language}: {output}`; the sentences are the two instructions of a record, where they differ,
    shuffled and cycled.

    "crosslingual": with probability 1/2 question and answer are in one random language; else the
    question is in the first language (the pivot) and the answer in another, reversed with
    probability 1/2. The sentences are instructions in the pivot and in a random other language.

    "translation": the text is `{input} Translate into {language}: {output}` or `{input} =
    {output}`, one at random (always the latter where the language is unknown); the direction is
    reversed with probability 1/2. The sentences are those of the pair.

    Args:
        mode: which builder.
        data: bilingual and crosslingual: language code -> records with the keys id, instruction,
            input ("" or absent: none) and output; the same ids in every language. translation:
            `Pair`s, or other (source, target) tuples.
        languages: two codes for bilingual, three or more for crosslingual (default: the keys of
            data); for translation the two codes of pairs that name none (default: unknown).
        repeats: how often each record or pair is used.
        seed: of all random choices.

    Returns:
        repeats * len(records) items, shuffled; each a dict with sent0, sent1, clm_text and
        clm_prompt_len.

    Raises:
        TypeError: data is of the wrong kind for the mode.
        ValueError: unknown mode or language, a wrong number of languages, no data, ids that differ
            between languages, a missing or empty text.

    Examples:
        >>> items = build_items("translation", [("Hello.", "Hallo.")], ("en", "de"), repeats=2)
        >>> len(items), sorted(items[0])
        (2, ['clm_prompt_len', 'clm_text', 'sent0', 'sent1'])
    """
    if mode not in MODES:
        raise ValueError(f"build_items: mode must be one of {', '.join(MODES)}, got {mode!r}")
    if repeats < 1:
        raise ValueError(f"build_items: repeats must be at least 1, got {repeats}")
    if isinstance(data, Mapping) == (mode == "translation"):
        wanted = "a list of pairs" if mode == "translation" else "a dict of records per language"
        raise TypeError(f"build_items: data must be {wanted}, got {type(data).__name__}")
    if isinstance(data, Mapping):
        languages = list(data) if languages is None else list(languages)
        check_mode_languages(mode, languages)
        records = _aligned_records(data, languages)
        build = _bilingual if mode == "bilingual" else _crosslingual
        return list(build(records, languages, repeats, random.Random(seed)))
    items = TranslationItems(_checked_pairs(data), languages or (), repeats=repeats, seed=seed)
    return list(items.shuffled())


class TranslationItems(Sequence[TrainingItem]):
    """The items that build_items makes of pairs, each made when it is asked for.

    Nothing is kept but the pairs, which may stay in their file (indexed_data.open_pairs). Item k is
    made of pair k % len(pairs), with random choices that seed and k decide.

    Args:
        pairs: at least one, without empty sides.
        languages, repeats, seed: as for build_items.

    Raises:
        ValueError: no pairs, unknown languages, or a wrong number of them.
    """

    def __init__(
        self, pairs: Sequence[Pair], languages: Sequence[str] = (), *, repeats: int, seed: int
    ) -> None:
        check_mode_languages("translation", languages)
        if not pairs:
            raise ValueError("build_items: data must hold at least one pair, got none")
        named = getattr(pairs, "named_languages", None)  # of pairs in a file, which was read before
        if named is None:
            named = {code for pair in pairs for code in pair[2:4]} - {""}
        check_languages(named)
        self.pairs, self.repeats, self.seed = pairs, repeats, seed
        self.languages = tuple(languages) or ("", "")

    def __len__(self) -> int:
        return self.repeats * len(self.pairs)

    def shuffled(self) -> Iterator[TrainingItem]:
        """All items in an order that the seed decides."""
        return (self[number] for number in Permutation(len(self), f"translation {self.seed}"))

    @overload
    def __getitem__(self, index: int) -> TrainingItem: ...
    @overload
    def __getitem__(self, index: slice) -> list[TrainingItem]: ...
    def __getitem__(self, index: int | slice) -> TrainingItem | list[TrainingItem]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        number = range(len(self))[index]  # negative ones too; IndexError beyond the end
        pair = self.pairs[number % len(self.pairs)]
        return self._item(pair, random.Random(f"{self.seed} {number}"))

    def _item(self, pair: Pair, rng: random.Random) -> TrainingItem:
        source, target, source_language, target_language, _ = pair.in_languages(*self.languages)
        if rng.random() < TURN_PROBABILITY:
            source, target, target_language = target, source, source_language
        prompt = f"{source} = "
        if rng.random() < 0.5 and target_language:
            prompt = f"{source} Translate into {LANGUAGE_NAMES[target_language]}: "
        return _item((source, target), prompt, target)


def _bilingual(
    records: Records, languages: list[str], repeats: int, rng: random.Random
) -> Iterator[TrainingItem]:
    first, second = languages
    pairs = _differing_instructions(records, first, second)
    following = _shuffled_and_cycled(pairs, rng)
    for index in _shuffled_repeats(len(records[first]), repeats, rng):
        source = rng.choice(languages)
        target = source
        if rng.random() < CROSS_PROBABILITY:
            target = second if source == first else first
        yield _answer_item(records, index, source, target, next(following))


def _crosslingual(
    records: Records, languages: list[str], repeats: int, rng: random.Random
) -> Iterator[TrainingItem]:
    pivot, *others = languages
    pairs = {other: _differing_instructions(records, pivot, other) for other in others}
    for index in _shuffled_repeats(len(records[pivot]), repeats, rng):
        other = rng.choice(others)
        source, target = pivot, other
        if rng.random() >= CROSS_PROBABILITY:
            source = target = rng.choice(languages)
        elif rng.random() < TURN_PROBABILITY:
            source, target = other, pivot
        yield _answer_item(records, index, source, target, rng.choice(pairs[other]))


def _answer_item(
    records: Records, index: int, source: str, target: str, pair: tuple[str, str]
) -> TrainingItem:
    question = records[source][index]
    context = " ".join(text for text in (question["instruction"], question["input"]) if text)
    prompt = f"{context} Answer in {LANGUAGE_NAMES[target]}: "
    return _item(pair, prompt, records[target][index]["output"])


def _item(pair: tuple[str, str], prompt: str, answer: str) -> TrainingItem:
    return {
        "sent0": pair[0],
        "sent1": pair[1],
        "clm_text": prompt + answer,
        "clm_prompt_len": len(prompt),
    }


def _shuffled_repeats(count: int, repeats: int, rng: random.Random) -> list[int]:
    indices = list(range(count)) * repeats
    rng.shuffle(indices)
    return indices


def _shuffled_and_cycled(
    pairs: list[tuple[str, str]], rng: random.Random
) -> Iterator[tuple[str, str]]:
    while True:
        rng.shuffle(pairs)
        yield from pairs


def _differing_instructions(records: Records, first: str, second: str) -> list[tuple[str, str]]:
    both = zip(records[first], records[second], strict=True)
    pairs = [(one["instruction"], other["instruction"]) for one, other in both]
    differing = [pair for pair in pairs if pair[0] != pair[1]]
    if not differing:
        raise ValueError(
            f"build_items: {first} and {second} have no instruction that differs, so there is no "
            "translation pair"
        )
    return differing


def check_mode_languages(mode: str, languages: Sequence[str]) -> None:
    """Raises ValueError for languages that are unknown, repeated or of the wrong number."""
    check_languages(languages)
    fits = {
        "bilingual": len(languages) == 2,
        "crosslingual": len(languages) >= 3,
        "translation": len(languages) in (0, 2),
    }[mode]
    if not fits or len(set(languages)) < len(languages):
        wanted = {"bilingual": "two", "crosslingual": "three or more", "translation": "two"}[mode]
        raise ValueError(
            f"build_items: {mode} needs {wanted} different languages, got {list(languages)}"
        )


def _checked_pairs(data: Sequence[Sequence[str]]) -> list[Pair]:
    pairs = []
    for number, row in enumerate(data, start=1):
        pair = row if isinstance(row, Pair) else Pair(*row)
        checked_text(pair.source, "the source", f"build_items: pair {number}")
        checked_text(pair.target, "the target", f"build_items: pair {number}")
        pairs.append(pair)
    return pairs


def _aligned_records(
    data: Mapping[str, Sequence[Mapping[str, Any]]], languages: list[str]
) -> Records:
    """Checked records per language, all in the first language's order of ids."""
    by_id: dict[str, dict[str, dict[str, str]]] = {}
    for language in languages:
        if language not in data:
            raise ValueError(f"build_items: data must hold records for {language!r}, has none")
        rows = [
            checked_record(row, f"{language}, record {number}")
            for number, row in enumerate(data[language], start=1)
        ]
        by_id[language] = {row["id"]: row for row in rows}
        if len(by_id[language]) < len(rows):
            ids = [row["id"] for row in rows]
            twice = next(value for value in ids if ids.count(value) > 1)
            raise ValueError(f"build_items: {language} has the id {twice!r} more than once")
    order = list(by_id[languages[0]])
    if not order:
        raise ValueError(f"build_items: data must hold records, got none for {languages[0]!r}")
    for language in languages[1:]:
        _check_same_ids(languages[0], by_id[languages[0]], language, by_id[language])
    return {language: [by_id[language][key] for key in order] for language in languages}


def _check_same_ids(
    first: str, first_ids: Mapping[str, Any], second: str, second_ids: Mapping[str, Any]
) -> None:
    for here, ids, there, others in (
        (first, first_ids, second, second_ids),
        (second, second_ids, first, first_ids),
    ):
        missing = [key for key in ids if key not in others]
        if missing:
            raise ValueError(
                f"build_items: the same ids must be in every language, but {len(missing)} of "
                f"{here} are missing in {there}, the first being {missing[0]!r}"
            )
