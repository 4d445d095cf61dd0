"""The settings of `crossalign align`: what it reads, where it writes, what config.yaml keeps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from crossalign.alignment.config import TrainingConfig
from crossalign.alignment.run_config import RunConfig
from crossalign.data.mixture import BATCH_LANGUAGES, MIXINGS, Mixing
from crossalign.data.pair_sources import PairSource, parse_pair_sources
from crossalign.settings import SettingError, check_settings, required, setting

_DATA = "model, data and output"


@dataclass(frozen=True, kw_only=True)
class AlignPaths:
    """What `crossalign align` reads and where it writes."""

    model: str = required("a causal language model", group=_DATA, metavar="NAME_OR_DIR")
    pairs: tuple[str, ...] = required(
        "one TSV or JSON-lines file, or two parallel text files; .gz of each. Several corpora with "
        "their languages: en-de:FILE, or en-de:FILE,FILE for parallel files, ...",
        group=_DATA,
        metavar="FILE",
    )
    output: Path = required(
        "new directory for checkpoint, metrics and state", group=_DATA, metavar="DIR"
    )
    lm_data: Path | None = setting(
        None,
        "items of `crossalign data build` for the next-token loss; None = the pairs",
        group=_DATA,
        metavar="FILE",
    )
    languages: tuple[str, ...] = setting(
        (),
        "the two languages of the pairs, such as en de, for prompts that name them",
        group=_DATA,
        metavar="CODE",
    )
    mix: str = setting(
        "size",
        "how often each corpus of --pairs is drawn: in proportion to its size, equally, or to "
        "size ** (1 / --mix-temperature)",
        group=_DATA,
        choices=MIXINGS,
    )
    mix_temperature: float = setting(
        5.0,
        "for --mix temperature: 1 = in proportion to size; larger = closer to equal",
        group=_DATA,
        above=0,
    )
    batch_languages: str = setting(
        "mixed",
        "what a batch holds: pairs of any corpus of --pairs, or of one corpus",
        group=_DATA,
        choices=BATCH_LANGUAGES,
    )
    skip_bad_lines: int = setting(
        0,
        "unusable lines that each corpus may have; they are counted and left out",
        group=_DATA,
        lowest=0,
    )
    cache: Path | None = setting(
        None,
        "directory for the indices of --pairs and --lm-data, to be used again; None = a temporary "
        "one",
        group=_DATA,
        metavar="DIR",
    )

    def __post_init__(self) -> None:
        check_settings(self)
        if len(self.languages) not in (0, 2):
            shown = " ".join(self.languages)
            raise SettingError(f"languages must be two codes, got {shown}", "languages")
        try:
            _ = self.sources
        except ValueError as error:
            raise SettingError(str(error), "pairs", "languages") from None

    @property
    def sources(self) -> list[PairSource]:
        """The files of --pairs, each with its languages."""
        return parse_pair_sources(self.pairs, self.languages)

    @property
    def mixing(self) -> Mixing:
        """How the corpora of --pairs are drawn."""
        return Mixing(self.mix, self.mix_temperature, self.batch_languages)

    def stored_pairs(self) -> list[str]:
        """What config.yaml holds of --pairs: absolute paths, with languages where they had some."""
        sources = [source.resolved() for source in self.sources]
        if len(sources) == 1 and sources[0].languages == self.languages:
            return [str(path) for path in sources[0].paths]
        return [str(source) for source in sources]


@dataclass(frozen=True, kw_only=True)
class AlignSource:
    """Where the settings of a run come from, beside the command line."""

    resume: bool = setting(False, "go on with the run in --output", group=_DATA, switch=True)
    config: Path | None = setting(
        None,
        "values of these flags, or recipe:NAME for one that comes with crossalign; flags that are "
        "given override it",
        group=_DATA,
        metavar="FILE.yaml",
    )


class AlignSettings(NamedTuple):
    """Everything that the command was asked for."""

    paths: AlignPaths
    training: TrainingConfig
    run: RunConfig
    resume: bool
    stored: Mapping[str, Any]  # of the run to resume; empty for a new one

    def inputs(self) -> list[Path | str]:
        """The files and folders that the run reads, beside its own."""
        paths, run = self.paths, self.run
        given: list[Path | str | None] = [paths.lm_data, run.evaluate_data, *run.evaluate_pairs]
        given += [path for source in paths.sources for path in source.paths]
        if Path(paths.model).exists():
            given.append(paths.model)
        return [each for each in given if each is not None]

    def plain(self) -> dict[str, Any]:
        """What config.yaml holds: plain values, files by their absolute paths."""
        settings = asdict(self.paths) | asdict(self.training) | asdict(self.run)
        del settings["output"]
        settings["pairs"] = self.paths.stored_pairs()
        evaluated = self.run.evaluate_pairs
        settings["evaluate_pairs"] = [str(Path(path).resolve()) for path in evaluated]
        for name in ("lm_data", "cache"):
            path = settings[name]
            settings[name] = str(path.resolve()) if path else None
        for name in ("model", "evaluate_data"):
            value = settings[name]
            if value is not None and Path(value).is_dir():
                settings[name] = str(Path(value).resolve())
        return {name: list(v) if isinstance(v, tuple) else v for name, v in settings.items()}
