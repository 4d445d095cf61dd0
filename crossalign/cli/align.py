"""`crossalign align`: its flags, the settings file, and the run they describe."""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crossalign.alignment.config import TrainingConfig
from crossalign.alignment.run_config import SETTINGS_FILE, RunConfig
from crossalign.cli.align_settings import AlignPaths, AlignSettings, AlignSource
from crossalign.cli.parser import Parser
from crossalign.cli.settings_file import as_flags, read_settings
from crossalign.cli.stored_settings import check_settings_file
from crossalign.files.lock import locked
from crossalign.files.output import check_inputs_outside
from crossalign.files.temporary import full_disk_named, temporary_folder
from crossalign.settings import (
    add_flags,
    from_arguments,
    names_of,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from crossalign.alignment.checkpoint import Checkpoints

SUMMARY = "Aligns a model's languages on translation pairs."


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
    told = "stopped by SIGTERM outside of training; --resume goes on from the last checkpoint"
    with exit_on_sigterm(told), contextlib.ExitStack() as stack:
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
        check_settings_file(Path(output))
        stored = read_settings(Path(output) / SETTINGS_FILE)
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
    from crossalign.data.indexed_data import data_fingerprint
    from crossalign.models.hidden_states import check_layer

    paths, config, plain = settings.paths, settings.training, settings.plain()
    pairs, lm_items = _open_data(paths, cache)
    evaluation = PeriodicEvaluation(settings.run) if settings.run.evaluate_every else None
    content = {"evaluation": evaluation.fingerprint} if evaluation else {}
    checkpoints = Checkpoints(paths.output, is_main=is_main_process(), content=content)
    step = checkpoints.last() if settings.resume else None
    if step is not None:  # known before the model is loaded
        named = {"pairs": pairs, "texts": lm_items if config.lm_weight > 0 else None}
        known = {name: data_fingerprint(each) for name, each in named.items() if each is not None}
        checkpoints.check_content(step, known)
    model, tokenizer = _load(settings, checkpoints, step)
    with parser.argument_errors():
        for layer in config.layers:
            check_layer("align", model, layer)
    adapters = checkpoints.path(step) if step is not None and config.lora_rank else None
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


def _open_data(paths: AlignPaths, cache: Path) -> tuple[Any, Any]:
    """The pairs, and the texts for the next-token loss if there are any of their own."""
    from crossalign.data.indexed_data import open_items
    from crossalign.data.pair_sources import open_pair_sources

    skip = paths.skip_bad_lines
    with full_disk_named(cache, "set TMPDIR or --cache to a folder with room for an index"):
        pairs = open_pair_sources(paths.sources, cache, mixing=paths.mixing, skip_bad_lines=skip)
        if paths.lm_data is None:
            return pairs, None
        return pairs, open_items(paths.lm_data, cache, skip_bad_lines=skip)


def _load(
    settings: AlignSettings, checkpoints: Checkpoints, step: int | None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model of the last checkpoint; for adapters, of which it has no more, their base model."""
    from crossalign.alignment.content import weights_fingerprint
    from crossalign.alignment.engines.launch import is_first_on_node

    has_adapters = settings.training.lora_rank is not None
    if step is not None and not has_adapters:
        return _load_model(str(checkpoints.path(step)))
    try:
        model, tokenizer = _load_model(settings.plain()["model"])
    except FileNotFoundError as error:
        if step is None:
            raise
        raise FileNotFoundError(
            f"{error}; the adapters of this run belong to it: name its place now by --model"
        ) from error
    if has_adapters and is_first_on_node():  # whose ranks have read the same files
        checkpoints.content["model"] = weights_fingerprint(model)
        if step is not None:
            checkpoints.check_content(step)
    return model, tokenizer


def _load_model(name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """In float32, which is what the optimizer updates, whatever the file holds."""
    from crossalign.cli.quiet import quiet_transformers
    from crossalign.models.loading import load_model

    quiet_transformers()
    return load_model(name, flag="--model: ")
