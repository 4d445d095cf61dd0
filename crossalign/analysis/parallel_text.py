"""Sentences in two languages or more, line by line translations of one another, from files."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from crossalign.data.meaning_ids import meaning_ids
from crossalign.data.pairs import Pair
from crossalign.files.temporary import temporary_folder
from crossalign.files.text import DataError

_Take = Callable[[Sequence[int]], dict[str, list[str]]]  # lines by their numbers
MIN_LINES = 3  # fewer span no plane
_UNNAMED = ("source", "target")
_CODE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,31}")  # a label of figures, a part of file names


def check_names(num_files: int, languages: Sequence[str]) -> None:
    """Raises ValueError unless the languages can name the files: none where two or fewer files, or
    one name per file (two for one file)."""
    wanted = max(num_files, 2)
    if len(languages) != wanted and (languages or num_files > 2):
        raise ValueError(
            f"argument --languages: {wanted} names for {num_files} "
            f"file{'s' if num_files > 1 else ''} of --pairs, got {len(languages)}"
        )
    for language in languages:
        if not _CODE.fullmatch(language):
            raise ValueError(
                f"argument --languages: {language!r} must be a code of ASCII letters, digits, "
                "'-', '_' and '.', at most 32"
            )
    if len(set(languages)) < len(languages):
        raise ValueError(f"argument --languages: {' '.join(languages)} names a language twice")


def read_parallel_text(
    paths: Sequence[Path], languages: Sequence[str] = (), *, limit: int | None = None, seed: int = 0
) -> dict[str, list[str]]:
    """Language -> sentences, of which line k means the same in every language.

    Args:
        paths: one TSV or JSON-lines file as `crossalign align` reads it, or a text file for each
            language; .gz of each.
        languages: names of the languages; () where two or fewer files name them themselves or need
            none ("source" and "target"). Of a JSON-lines file in several languages, the pairs of
            these two are taken, turned round where needed.
        limit: draw as many lines at random, and keep their order; None: all.
        seed: of that draw.

    Raises:
        DataError: a file or line that cannot be used, too few lines, or no two that differ.
        ValueError: as check_names.
    """
    check_names(len(paths), languages)
    with temporary_folder() as cache:  # an index of the lines, and the text of .gz files
        if len(paths) == 1:
            num_lines, take = _open_one(paths[0], languages, cache)
        else:
            num_lines, take = _open_many(paths, languages or _UNNAMED, cache)
        drawn = list(range(num_lines))
        if limit is not None and limit < num_lines:
            drawn = sorted(random.Random(seed).sample(drawn, limit))
        sentences = take(drawn)
    num_lines = len(drawn)
    if num_lines < MIN_LINES:
        raise DataError(f"{paths[0]}: {num_lines} lines are too few; {MIN_LINES} are needed")
    for code, lines in sentences.items():
        if len(set(lines)) == 1:
            raise DataError(f"{paths[0]}: every sentence in {code} is the same")
    return sentences


def same_meaning_ids(sentences: Mapping[str, Sequence[str]], one: str, other: str) -> list[int]:
    """A number for each line, equal where lines share a sentence in either language."""
    return meaning_ids(list(map(Pair, sentences[one], sentences[other]))).pairs


def _open_one(path: Path, languages: Sequence[str], cache: Path) -> tuple[int, _Take]:
    """How many pairs of the languages a file has, and what gives some of them."""
    from crossalign.data.indexed_data import open_pairs  # the command's help loads no PyTorch

    pairs = open_pairs([path], (), cache)
    chosen: list[tuple[int, bool]] = []  # a pair's number, and whether it is turned round
    named = {(pair.source_language, pair.target_language) for pair in pairs}
    if not languages:
        languages = _own_languages(path, named)
    source, target = languages
    for number, pair in enumerate(pairs):
        codes = pair.in_languages(source, target)[2:4]
        if codes in ((source, target), (target, source)):
            chosen.append((number, codes != (source, target)))
    if not chosen and not named & {(source, target), (target, source), ("", "")}:
        shown = ", ".join("-".join(names) for names in sorted(named)[:4])
        raise DataError(f"{path}: no pair of {source} and {target}; it holds {shown}")

    def take(lines: Sequence[int]) -> dict[str, list[str]]:
        taken = [(pairs[chosen[line][0]], chosen[line][1]) for line in lines]
        sides = [(pair[1], pair[0]) if is_turned else pair[:2] for pair, is_turned in taken]
        return {source: [side[0] for side in sides], target: [side[1] for side in sides]}

    return len(chosen), take


def _own_languages(path: Path, named: set[tuple[str, str]]) -> tuple[str, str]:
    """What the pairs of a file name, or names for what they do not."""
    if len(named) > 1:
        shown = ", ".join("-".join(names) for names in sorted(named)[:4])
        raise DataError(f"{path}: pairs of several languages ({shown}); choose by --languages")
    ((source, target),) = named
    languages = (source or _UNNAMED[0], target or _UNNAMED[1])
    try:
        check_names(1, languages)
    except ValueError:
        raise DataError(
            f"{path}: {languages[0]!r} and {languages[1]!r} cannot name the languages; name "
            "them by --languages"
        ) from None
    return languages


def _open_many(paths: Sequence[Path], languages: Sequence[str], cache: Path) -> tuple[int, _Take]:
    """How many lines each of the files has, and what gives some of them."""
    from crossalign.data.indexed_data import SentenceCheck
    from crossalign.files.indexed_lines import IndexedLines

    files = [IndexedLines(path, cache, SentenceCheck) for path in paths]
    counts = [len(file) for file in files]
    if len(set(counts)) > 1:
        short, long = counts.index(min(counts)), counts.index(max(counts))
        raise DataError(
            f"{paths[short]}:{counts[short] + 1}: no line to match {paths[long]}, which has "
            f"{counts[long]} lines; this file has {counts[short]}"
        )

    def take(lines: Sequence[int]) -> dict[str, list[str]]:
        named = zip(languages, files, strict=True)
        return {language: [file[line] for line in lines] for language, file in named}

    return counts[0], take
