"""Translation pairs and their files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from crossalign.files.text import DataError, checked_text, json_object, read_lines, text_field

JSON_SUFFIXES = (".jsonl", ".json")
Parsed = TypeVar("Parsed")


class Pair(NamedTuple):
    """A sentence and its translation; languages are codes such as "en", or "" where unknown.

    negative: a sentence close to the target that does not mean the same (a hard negative), or "".
    """

    source: str
    target: str
    source_language: str = ""
    target_language: str = ""
    negative: str = ""

    def in_languages(self, source: str, target: str) -> Pair:
        """The pair with these languages where it names none itself."""
        return self._replace(
            source_language=self.source_language or source,
            target_language=self.target_language or target,
        )


def read_pairs(paths: Sequence[Path], languages: Sequence[str] = ()) -> list[Pair]:
    r"""The pairs of one TSV or JSON-lines file, or of two parallel text files; .gz of each.

    TSV: source TAB target; further columns are ignored, quotation marks are literal, there is no
    header. JSON lines (.jsonl, .json): the keys "source" and "target", and optionally
    "source_language", "target_language" and "negative"; the items that `crossalign data build`
    writes ("sent0", "sent1") are pairs too. Lines end at "\n", before which one "\r" is dropped.

    Args:
        paths: one file, or two of equally many lines.
        languages: () or the codes of source and target, for pairs whose file names none.

    Raises:
        DataError: a file or line that cannot be used, naming both and the reason.
        ValueError: a wrong number of paths or languages.
    """
    check_paths(paths, languages)
    if len(paths) == 2:
        sources, targets = (_parsed(path, parse_sentence) for path in paths)
        check_same_length(paths[0], len(sources), paths[1], len(targets))
        pairs = list(map(Pair, sources, targets))
    else:
        pairs = _parsed(paths[0], parser_of(paths[0]))
    source, target = languages or ("", "")
    return [pair.in_languages(source, target) for pair in pairs]


def parse_tsv(line: str, where: str) -> Pair:
    """The pair of a line of a TSV file; raises DataError, naming where, if it holds none."""
    columns = line.split("\t", 2)
    if len(columns) < 2:
        raise DataError(f"{where}: no TAB; a line must be source TAB target")
    source = checked_text(columns[0], "the source", where)
    return Pair(source, checked_text(columns[1], "the target", where))


def parse_json(line: str, where: str) -> Pair:
    """The pair of a line of a JSON-lines file; raises DataError, naming where, if it holds none."""
    record = json_object(line, where)
    is_item = "sent0" in record and "source" not in record
    optional = {
        key: checked_text(record[key], f'"{key}"', where)
        for key in ("source_language", "target_language", "negative")
        if record.get(key)
    }
    source = text_field(record, "sent0" if is_item else "source", where)
    target = text_field(record, "sent1" if is_item else "target", where)
    return Pair(source, target, **optional)


def parse_sentence(line: str, where: str) -> str:
    """The sentence of a line of a parallel file; raises DataError, naming where, if it is empty."""
    return checked_text(line, "the sentence", where)


def parser_of(path: Path) -> Callable[[str, str], Pair]:
    """How a line of a file of pairs is read, by the file's name."""
    is_json = Path(path.name.removesuffix(".gz")).suffix in JSON_SUFFIXES
    return parse_json if is_json else parse_tsv


def check_same_length(source_path: Path, source: int, target_path: Path, target: int) -> None:
    """Raises DataError unless two parallel files have equally many lines."""
    if source != target:
        sides = ((source, source_path), (target, target_path))
        (short, short_path), (long, long_path) = sorted(sides, key=lambda side: side[0])
        raise DataError(
            f"{short_path}:{short + 1}: no line to match {long_path}, which has {long} lines; "
            f"this file has {short}"
        )


def check_paths(paths: Sequence[Path], languages: Sequence[str]) -> None:
    """Raises ValueError unless there is a file or two, and none or two languages."""
    if len(languages) not in (0, 2):
        raise ValueError(f"read_pairs: languages must be none or two codes, got {list(languages)}")
    if len(paths) not in (1, 2):
        raise ValueError(f"read_pairs: paths must be one file or two, got {len(paths)}")


def _parsed(path: Path, parse: Callable[[str, str], Parsed]) -> list[Parsed]:
    lines = enumerate(read_lines(path), start=1)
    return [parse(line, f"{path}:{number}") for number, line in lines]
