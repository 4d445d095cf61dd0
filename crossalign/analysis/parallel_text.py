"""Sentences in two languages or more, line by line translations of one another, from files."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from crossalign.data.meaning_ids import meaning_ids
from crossalign.data.pairs import Pair, read_pairs
from crossalign.files.text import DataError, checked_text, read_lines

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
    if len(paths) == 1:
        sentences = _read_one(paths[0], languages)
    else:
        sentences = _read_many(paths, languages or _UNNAMED)
    num_lines = len(next(iter(sentences.values())))
    if limit is not None and limit < num_lines:
        drawn = sorted(random.Random(seed).sample(range(num_lines), limit))
        sentences = {code: [lines[index] for index in drawn] for code, lines in sentences.items()}
        num_lines = limit
    if num_lines < MIN_LINES:
        raise DataError(f"{paths[0]}: {num_lines} lines are too few; {MIN_LINES} are needed")
    for code, lines in sentences.items():
        if len(set(lines)) == 1:
            raise DataError(f"{paths[0]}: every sentence in {code} is the same")
    return sentences


def same_meaning_ids(sentences: Mapping[str, Sequence[str]], one: str, other: str) -> list[int]:
    """A number for each line, equal where lines share a sentence in either language."""
    return meaning_ids(list(map(Pair, sentences[one], sentences[other]))).pairs


def _read_one(path: Path, languages: Sequence[str]) -> dict[str, list[str]]:
    pairs = read_pairs([path])
    named = {(pair.source_language, pair.target_language) for pair in pairs}
    if not languages:
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
    source, target = languages
    chosen = []
    for pair in pairs:
        pair = pair.in_languages(source, target)
        if (pair.source_language, pair.target_language) == (source, target):
            chosen.append((pair.source, pair.target))
        elif (pair.target_language, pair.source_language) == (source, target):
            chosen.append((pair.target, pair.source))
    if not chosen and not named & {(source, target), (target, source), ("", "")}:
        shown = ", ".join("-".join(names) for names in sorted(named)[:4])
        raise DataError(f"{path}: no pair of {source} and {target}; it holds {shown}")
    return {source: [pair[0] for pair in chosen], target: [pair[1] for pair in chosen]}


def _read_many(paths: Sequence[Path], languages: Sequence[str]) -> dict[str, list[str]]:
    sentences = {}
    for path, language in zip(paths, languages, strict=True):
        lines = enumerate(read_lines(path), start=1)
        sentences[language] = [
            checked_text(line, "the sentence", f"{path}:{number}") for number, line in lines
        ]
    counts = [len(lines) for lines in sentences.values()]
    if len(set(counts)) > 1:
        short, long = counts.index(min(counts)), counts.index(max(counts))
        raise DataError(
            f"{paths[short]}:{counts[short] + 1}: no line to match {paths[long]}, which has "
            f"{counts[long]} lines; this file has {counts[short]}"
        )
    return sentences
