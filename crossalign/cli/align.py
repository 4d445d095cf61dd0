"""`crossalign align`: its flags, the settings file, and the run they describe."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from crossalign.alignment.config import TrainingConfig
from crossalign.alignment.run_config import RunConfig
from crossalign.cli.parser import Parser
from crossalign.cli.settings_file import as_flags, read_settings
from crossalign.data.mixture import BATCH_LANGUAGES, MIXINGS, Mixing
from crossalign.data.pair_sources import PairSource, parse_pair_sources
from crossalign.files.lock import locked
from crossalign.files.output import check_inputs_outside
from crossalign.files.temporary import full_disk_named, temporary_folder
from crossalign.settings import (
    SettingError,
    add_flags,
    check_settings,
    from_arguments,
    names_of,
    required,
    setting,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SUMMARY = "Aligns a model's languages on translation pairs."
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
        5.0, "of --mix temperature: 1 is by size, more is more equal", group=_DATA, above=0
    )
    batch_languages: str = setting(
        "mixed",
        "what a batch holds: pairs of any corpus of --pairs, or of one corpus",
        group=_DATA,
        choices=BATCH_LANGUAGES,
    )
    skip_bad_lines: int = setting(
        0,
        "lines of each corpus that may be unusable: they are counted and left out",
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


_STORED = (*names_of(AlignPaths), *names_of(TrainingConfig), *names_of(RunConfig))


def add_arguments(parser: Parser) -> None:
    """The flags of the command; a settings file may hold all but --resume and --config."""
    # What is required may come from --config or the run to resume: checked when all is read.
    add_flags(parser, AlignPaths, check_required=False)
    add_flags(parser, AlignSource)
    add_flags(parser, TrainingConfig)
    add_flags(parser, RunConfig)


def run(parser: Parser, args: argparse.Namespace, argv: list[str]) -> None:
    """Checks everything that can be checked before the model is loaded, then trains."""
    settings = _read(parser, args, argv)
    from crossalign.alignment.engines.launch import is_main_process
    from crossalign.alignment.run_directory import check_output, check_unchanged
    from crossalign.alignment.stop_request import exit_on_sigterm
    from crossalign.alignment.trackers import check_trackers
    from crossalign.models.loading import choose_device

    with parser.argument_errors():
        choose_device(settings.training.device)
        check_trackers(settings.run.trackers)
        check_inputs_outside(settings.paths.output, settings.inputs())
        if settings.resume:
            check_unchanged(settings.stored, settings.plain())
    output = settings.paths.output
    with exit_on_sigterm(), contextlib.ExitStack() as stack:
        if is_main_process():  # another rank may come when this one has begun to write
            stack.enter_context(locked(output))
            check_output(output, resume=settings.resume)
        cache = settings.paths.cache or stack.enter_context(temporary_folder())
        _train(parser, settings, cache)


def _read(parser: Parser, args: argparse.Namespace, argv: list[str]) -> AlignSettings:
    """The settings of --config, of the run to resume and of the command line, checked."""
    source = from_arguments(AlignSource, args)
    given = read_settings(source.config) if source.config else {}
    stored: dict[str, Any] = {}
    if source.resume:
        output = getattr(args, "output", given.get("output"))
        if output is None:
            parser.error("--resume needs --output")
        stored = read_settings(Path(output) / "config.yaml")
    flags = as_flags(parser, stored, _STORED) + as_flags(parser, given, _STORED)
    args = parser.parse_args(flags + argv[1:])
    missing = [f"--{name}" for name in ("model", "pairs", "output") if not hasattr(args, name)]
    if missing:
        parser.error(f"missing: {', '.join(missing)}")
    with parser.argument_errors():
        return AlignSettings(
            from_arguments(AlignPaths, args),
            from_arguments(TrainingConfig, args),
            from_arguments(RunConfig, args),
            source.resume,
            stored,
        )


def _train(parser: Parser, settings: AlignSettings, cache: Path) -> None:
    from crossalign.alignment.checkpoint import Checkpoints
    from crossalign.alignment.closing_table import closing_table
    from crossalign.alignment.engines.launch import is_main_process
    from crossalign.alignment.periodic_evaluation import PeriodicEvaluation
    from crossalign.alignment.progress import sizes_line
    from crossalign.alignment.run_directory import train_into
    from crossalign.alignment.train import AlignmentRun
    from crossalign.data.indexed_data import open_items
    from crossalign.data.pair_sources import open_pair_sources
    from crossalign.models.hidden_states import check_layer

    paths, config, plain = settings.paths, settings.training, settings.plain()
    with full_disk_named(cache, "set TMPDIR or --cache to a folder with room for an index"):
        skip = paths.skip_bad_lines
        pairs = open_pair_sources(paths.sources, cache, mixing=paths.mixing, skip_bad_lines=skip)
        lm_items = None
        if paths.lm_data:
            lm_items = open_items(paths.lm_data, cache, skip_bad_lines=skip)
    evaluation = PeriodicEvaluation(settings.run) if settings.run.evaluate_every else None
    checkpoints = Checkpoints(paths.output, is_main=is_main_process())
    step = checkpoints.last() if settings.resume else None
    last = None if step is None else checkpoints.path(step)
    adapters = last if config.lora_rank is not None else None
    is_whole = last is not None and adapters is None
    model, tokenizer = _load_model(str(last) if is_whole else plain["model"])
    with parser.argument_errors():
        for layer in config.layers:
            check_layer("align", model, layer)
    alignment = AlignmentRun(model, tokenizer, pairs, config, lm_items, adapters=adapters)
    if alignment.engine.is_main:
        batches, ranks = alignment.batches, alignment.engine.world_size
        line = sizes_line(config, batches.batch_size, batches.lm_batch_size, ranks)
        print(line, flush=True)
    train_into(checkpoints, alignment, plain, settings.run, evaluation, resume=settings.resume)
    if not alignment.engine.is_main:
        return
    if alignment.step < config.steps:
        print(f"stopped after step {alignment.step} of {config.steps}; --resume goes on from there")
    else:
        print(closing_table(paths.output))
        print(f"wrote {paths.output}: the model after {config.steps} steps on {len(pairs)} pairs")


def _load_model(name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """In float32, which is what the optimizer updates, whatever the file holds."""
    from crossalign.cli.quiet import quiet_transformers
    from crossalign.models.loading import load_model

    quiet_transformers()
    return load_model(name, flag="--model: ")
