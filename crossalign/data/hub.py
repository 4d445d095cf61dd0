"""Data of the Hugging Face Hub, or of a local folder in its form, through the library datasets.

A source is written hub:NAME[:CONFIG][:SPLIT]; the split is train if not given. NAME may also be a
folder that datasets.load_dataset takes. Instruction data has a config per language: that of its
code, or CONFIG with {language} in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, overload

from crossalign.data.instruction_files import Records, records_of
from crossalign.data.pairs import Pair
from crossalign.files.text import DataError, text_field

PREFIX = "hub:"


class HubSource(NamedTuple):
    """What stands behind hub: in a source; "" where not given."""

    name: str
    config: str
    split: str

    def __str__(self) -> str:
        return PREFIX + ":".join(part for part in self if part)


def parse_source(text: str) -> HubSource:
    """Raises ValueError unless text is hub:NAME[:CONFIG][:SPLIT]."""
    parts = text.removeprefix(PREFIX).split(":")
    if not text.startswith(PREFIX) or not parts[0] or len(parts) > 3:
        raise ValueError(f"a source must be hub:NAME[:CONFIG][:SPLIT], got {text!r}")
    name, config, split = [*parts, "", ""][:3]
    return HubSource(name, config, split or "train")


def hub_records(source: HubSource, languages: Sequence[str]) -> Records:
    """Instruction records of each language; read whole.

    Raises:
        DataError: the data set cannot be loaded, or a row holds no record.
        RuntimeError: the library datasets is missing.
    """
    records: Records = {}
    for language in languages:
        config = (source.config or "{language}").replace("{language}", language)
        here = source._replace(config=config)
        records[language] = [
            record
            for number, row in enumerate(_load(here))
            for record in records_of(row, f"{here}, row {number}")
        ]
    return records


class HubPairs(Sequence[Pair]):
    """Translation pairs that stay in the data set: rows with source and target, or with an object
    "translation" that has a text for each of the two languages.

    Raises:
        DataError: the data set cannot be loaded or is empty, or the row asked for is no pair.
        RuntimeError: the library datasets is missing.
    """

    def __init__(self, source: HubSource, languages: Sequence[str]) -> None:
        self.source = source
        self.languages = list(languages)
        self.named_languages = set(languages)
        self._rows = _load(source)

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Pair: ...
    @overload
    def __getitem__(self, index: slice) -> list[Pair]: ...
    def __getitem__(self, index: int | slice) -> Pair | list[Pair]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        return self._pair(self._rows[index], f"{self.source}, row {index}")

    def __iter__(self) -> Iterator[Pair]:
        return (self[number] for number in range(len(self)))

    def _pair(self, row: Mapping[str, Any], where: str) -> Pair:
        keys = ["source", "target"]
        if isinstance(row.get("translation"), Mapping):
            row, keys = row["translation"], self.languages
        return Pair(*(text_field(row, key, where) for key in keys), *self.languages)


def _load(source: HubSource) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise RuntimeError(
            f"{source} needs the library datasets: pip install 'crossalign[hub]'"
        ) from error
    try:
        rows = datasets.load_dataset(source.name, source.config or None, split=source.split)
    except Exception as error:  # of the network, of the data set, of its files: many kinds
        raise DataError(f"{source}: cannot be loaded: {error}") from error
    if not len(rows):
        raise DataError(f"{source}: holds no rows")
    return rows
