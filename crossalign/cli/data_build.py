"""`crossalign data build`: makes training items of instruction data or translation pairs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from crossalign.cli.parser import Parser
from crossalign.data import hub
from crossalign.data.builders import (
    Mode,
    TrainingItem,
    TranslationItems,
    build_items,
    check_mode_languages,
)
from crossalign.data.instruction_files import (
    Records,
    is_file_of_language,
    keep_common_ids,
    read_records,
)
from crossalign.data.pair_sources import PairSource, open_pair_sources, parse_pair_sources
from crossalign.data.pairs import Pair
from crossalign.files.lock import held
from crossalign.files.output import check_is_no_input, check_output_file, write_json_lines
from crossalign.files.temporary import temporary_folder
from crossalign.settings import (
    SettingError,
    add_flags,
    check_settings,
    from_arguments,
    overwrite_setting,
    required,
    setting,
)

SUMMARY = "Builds training items from instruction data or translation pairs."
_INPUT_HELP = (
    "bilingual, crosslingual: a directory with one file per language, CODE.json or NAME.CODE.json "
    "(also .jsonl, and .gz of each): Bactrian-X (a list or lines of objects with id, instruction, "
    "input, output), seed tasks (id, instruction, instances) or SQuAD (XQuAD). translation: a TSV "
    "or JSON-lines file of pairs, or two parallel text files; .gz of each; several corpora: "
    "en-de:FILE or en-de:FILE,FILE ... All modes: "
    "hub:NAME[:CONFIG][:SPLIT], a data set of the Hugging Face Hub or a folder of that form; "
    "CONFIG may contain {language}, which is its default for instructions; SPLIT defaults to train"
)


@dataclass(frozen=True, kw_only=True)
class BuildSettings:
    """The flags of `crossalign data build`."""

    mode: Mode = required("which builder")
    languages: tuple[str, ...] = setting(
        (),
        "codes such as en de; the first is the pivot of crosslingual and the source of pairs; none "
        "where --input names them",
        metavar="CODE",
    )
    input: tuple[str, ...] = required(_INPUT_HELP, metavar="PATH")
    output: Path = required("result", metavar="FILE.jsonl")
    overwrite: bool = overwrite_setting()
    repeats: int = setting(3, "uses of each record or pair", lowest=1)
    seed: int = setting(0, "seed of everything that is drawn")
    ids: str = setting(
        "common",
        "records whose id is not in every language: common leaves them out and says how many, "
        "same is an error",
        choices=("common", "same"),
    )
    cache: Path | None = setting(
        None,
        "directory for the index of --input, to be used again; None = a temporary one",
        metavar="DIR",
    )

    def __post_init__(self) -> None:
        check_settings(self)
        check_mode_languages(self.mode, self.languages)
        if self.output.suffix == ".gz":  # which every reader would unpack
            message = f"output must not end in .gz, it is plain text, got {self.output}"
            raise SettingError(message, "output")
        if self.reads_folder or self.hub_source is not None:
            if len(self.input) > 1:
                message = f"input must be at most 1 for this, got {len(self.input)}"
                raise SettingError(message, "input")
        elif not self.languages and not all(source.languages for source in self.sources):
            raise SettingError(
                "languages must be given, or named by --input: en-de:FILE", "languages"
            )
        if self.hub_source is None:
            files = [] if self.reads_folder else [f for each in self.sources for f in each.paths]
            folders = self.input if self.reads_folder else []
            check_is_no_input(self.output, files, folders)
            if self.reads_folder and is_file_of_language(self.output, Path(self.input[0])):
                raise SettingError(
                    f"{self.output} would be read as instructions of --input the next time; name "
                    "another output"
                )

    @property
    def reads_folder(self) -> bool:
        """Whether --input is a folder of instruction data."""
        return self.mode != "translation"

    @property
    def sources(self) -> list[PairSource]:
        """The corpora of pairs that --input names."""
        try:
            return parse_pair_sources(self.input, self.languages)
        except ValueError as error:
            message = str(error).replace("pairs must", "input must", 1)
            raise SettingError(message, "input", "languages") from None

    @property
    def hub_source(self) -> hub.HubSource | None:
        """The data set of the Hub that --input names; None: files."""
        is_hub = self.input[0].startswith(hub.PREFIX)
        return hub.parse_source(self.input[0]) if is_hub else None


def add_arguments(parser: Parser) -> None:
    add_flags(parser, BuildSettings)


def run(parser: Parser, args: argparse.Namespace, argv: list[str]) -> None:
    with parser.argument_errors():
        settings = from_arguments(BuildSettings, args)
    with held(settings.output):
        check_output_file(settings.output, overwrite=settings.overwrite)
        if settings.mode == "translation":
            _build_from_pairs(settings)
        else:
            _build_from_records(settings)


def _build_from_records(settings: BuildSettings) -> None:
    source, languages = settings.hub_source, settings.languages
    if source is not None:
        records = hub.hub_records(source, languages)
    else:
        records = read_records(Path(settings.input[0]), languages)
    if settings.ids == "common":
        records = _with_common_ids(records)
    choices = {"repeats": settings.repeats, "seed": settings.seed}
    items = build_items(settings.mode, records, languages, **choices)
    _write(settings.output, items, len(items))


def _build_from_pairs(settings: BuildSettings) -> None:
    source, languages = settings.hub_source, settings.languages
    with temporary_folder() as temporary:
        pairs: Sequence[Pair]
        if source is not None:
            pairs = hub.HubPairs(source, languages)
        else:
            pairs = open_pair_sources(settings.sources, settings.cache or temporary)
        choices = {"repeats": settings.repeats, "seed": settings.seed}
        made = TranslationItems(pairs, languages, **choices)
        _write(settings.output, made.shuffled(), len(made))


def _with_common_ids(records: Records) -> Records:
    kept, left_out = keep_common_ids(records)
    for language, count in left_out.items():
        if count:
            total = len(records[language])
            print(
                f"left out {count} of {total} records of {language}: their ids are not in "
                "every language",
                file=sys.stderr,
            )
    return kept


def _write(path: Path, items: Iterable[TrainingItem], count: int) -> None:
    write_json_lines(path, items)
    print(f"wrote {path}: {count} items")
