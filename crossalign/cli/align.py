"""`crossalign align`: its flags, the settings file, and the run they describe."""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crossalign.alignment.config import TrainingConfig
from crossalign.alignment.config import add_arguments as add_config_arguments
from crossalign.alignment.run_config import RunConfig
from crossalign.data.languages import check_languages

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def add_arguments(align: argparse.ArgumentParser) -> None:
    """The flags of the command; a settings file may hold all but --resume and --config."""
    # Required, but --config or the run to resume may give them: checked when all is read.
    align.add_argument(
        "--model", default=argparse.SUPPRESS, metavar="NAME_OR_DIR", help="a causal language model"
    )
    align.add_argument(
        "--pairs",
        nargs="+",
        default=argparse.SUPPRESS,
        metavar="FILE",
        help="one TSV or JSON-lines file, or two parallel text files; .gz of each",
    )
    align.add_argument(
        "--output",
        type=Path,
        default=argparse.SUPPRESS,
        metavar="DIR",
        help="new directory for checkpoint, metrics and state",
    )
    align.add_argument(
        "--lm-data",
        type=Path,
        metavar="FILE",
        help="items of `crossalign data build` for the next-token loss; None = the pairs",
    )
    align.add_argument(
        "--languages",
        nargs=2,
        metavar="CODE",
        help="languages of the pairs, such as en de, for prompts that name them",
    )
    add_config_arguments(align)
    add_config_arguments(align, RunConfig)
    align.add_argument(
        "--cache",
        type=Path,
        metavar="DIR",
        help="directory for the indices of --pairs and --lm-data, to be used again; None: a "
        "temporary one",
    )
    align.add_argument("--resume", action="store_true", help="go on with the run in --output")
    align.add_argument(
        "--config",
        type=Path,
        metavar="FILE.yaml",
        help="values of these flags; flags that are given override it",
    )


def run(args: argparse.Namespace, argv: list[str]) -> None:
    """Checks everything that can be checked before the model is loaded, then trains."""
    from crossalign.alignment.engines.launch import is_main_process
    from crossalign.alignment.run_directory import check_output, check_unchanged
    from crossalign.models.loading import choose_device

    args, stored = _with_settings(args, argv)
    try:
        config = TrainingConfig(**_pick(args, [each.name for each in fields(TrainingConfig)]))
        run_config = RunConfig(**_pick(args, [each.name for each in fields(RunConfig)]))
        check_languages(args.languages or ())
        choose_device(config.device)
        settings = _align_settings(args)
        if args.resume:
            check_unchanged(stored, settings)
    except ValueError as error:
        args.parser.error(str(error))
    if is_main_process():  # another rank may come when this one has begun to write
        check_output(args.output, resume=args.resume)
    with tempfile.TemporaryDirectory(prefix="crossalign-") as temporary:
        _train(args, config, run_config, settings, args.cache or Path(temporary))


def _train(
    args: argparse.Namespace,
    config: TrainingConfig,
    run_config: RunConfig,
    settings: dict[str, Any],
    cache: Path,
) -> None:
    from crossalign.alignment import checkpoint
    from crossalign.alignment.periodic_evaluation import PeriodicEvaluation
    from crossalign.alignment.progress import sizes_line
    from crossalign.alignment.run_directory import train_into
    from crossalign.alignment.train import AlignmentRun
    from crossalign.data.indexed_data import open_items, open_pairs
    from crossalign.models.encode import check_layer

    pairs = open_pairs([Path(path) for path in args.pairs], args.languages or (), cache)
    lm_items = open_items(args.lm_data, cache) if args.lm_data else None
    evaluation = PeriodicEvaluation(run_config) if run_config.evaluate_every else None
    steps = checkpoint.steps_of(args.output) if args.resume else []
    last = checkpoint.path_of(args.output, steps[-1]) if steps else None
    adapters = last if config.lora_rank is not None else None
    is_whole = last is not None and adapters is None
    model, tokenizer = _load_model(str(last) if is_whole else settings["model"])
    try:
        for layer in config.layers:
            check_layer("align", model, layer)
    except ValueError as error:
        args.parser.error(str(error))
    alignment = AlignmentRun(model, tokenizer, pairs, config, lm_items, adapters=adapters)
    if alignment.engine.is_main:
        batches, ranks = alignment.batches, alignment.engine.world_size
        line = sizes_line(config, batches.batch_size, batches.lm_batch_size, ranks)
        print(line, flush=True)
    train_into(args.output, alignment, settings, run_config, evaluation, resume=args.resume)
    if not alignment.engine.is_main:
        return
    if alignment.step < config.steps:
        print(f"stopped after step {alignment.step} of {config.steps}; --resume goes on from there")
    else:
        print(f"wrote {args.output}: the model after {config.steps} steps on {len(pairs)} pairs")


def _with_settings(
    args: argparse.Namespace, argv: list[str]
) -> tuple[argparse.Namespace, dict[str, Any]]:
    """The arguments again, after those of --config and of the run to resume; and the latter."""
    from crossalign.alignment.run_directory import SETTINGS_FILE, read_settings

    parser: argparse.ArgumentParser = args.parser
    given = read_settings(args.config) if args.config else {}
    stored: dict[str, Any] = {}
    if args.resume:
        output = getattr(args, "output", given.get("output"))
        if output is None:
            parser.error("--resume needs --output")
        stored = read_settings(Path(output) / SETTINGS_FILE)
    flags = _as_flags(parser, stored) + _as_flags(parser, given)
    args = parser.parse_args(flags + argv[1:])
    missing = [f"--{name}" for name in ("model", "pairs", "output") if not hasattr(args, name)]
    if missing:
        parser.error(f"missing: {', '.join(missing)}")
    if len(args.pairs) > 2:
        parser.error(f"argument --pairs: one file or two, got {len(args.pairs)}")
    return args, stored


def _as_flags(parser: argparse.ArgumentParser, settings: dict[str, Any]) -> list[str]:
    """Settings from a file as the command line would give them, so that it checks them alike."""
    unknown = sorted(settings.keys() - set(_setting_names(parser)))
    if unknown:
        known = ", ".join(_setting_names(parser))
        parser.error(f"unknown in the configuration file: {', '.join(unknown)}; known: {known}")
    flags = []
    for name, value in settings.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            flags.append(f"--{flag}" if value else f"--no-{flag}")
        elif isinstance(value, list):
            flags += [f"--{flag}", *map(str, value)] if value else []
        elif value is not None:
            flags.append(f"--{flag}={value}")
    return flags


def _setting_names(parser: argparse.ArgumentParser) -> list[str]:
    """What a configuration file may set."""
    apart = ("help", "debug", "resume", "config")
    return [action.dest for action in parser._actions if action.dest not in apart]


def _align_settings(args: argparse.Namespace) -> dict[str, Any]:
    """What config.yaml holds: plain values, files by their absolute paths."""
    settings = _pick(args, _setting_names(args.parser))
    del settings["output"]
    settings["pairs"] = [str(Path(path).resolve()) for path in args.pairs]
    settings["evaluate_pairs"] = [str(Path(path).resolve()) for path in args.evaluate_pairs]
    for name in ("lm_data", "cache"):
        path = getattr(args, name)
        settings[name] = str(path.resolve()) if path else None
    for name in ("model", "evaluate_data"):
        value = getattr(args, name)
        if value is not None and Path(value).is_dir():
            settings[name] = str(Path(value).resolve())
    return {name: list(v) if isinstance(v, tuple) else v for name, v in settings.items()}


def _pick(args: argparse.Namespace, names: Sequence[str]) -> dict[str, Any]:
    return {name: getattr(args, name) for name in names}


def quiet_transformers() -> None:
    """No bars where nobody watches, no warning of every retry, which would bury the one line that
    tells what failed, and nothing of DeepSpeed where it is merely installed."""
    from transformers.utils.logging import disable_progress_bar

    if not sys.stderr.isatty():
        disable_progress_bar()  # type: ignore[no-untyped-call]
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    logging.getLogger("DeepSpeed").addFilter(_is_no_word_on_cpus)


def _is_no_word_on_cpus(record: logging.LogRecord) -> bool:
    """Transformers imports DeepSpeed to save a model, which says on standard output that there is
    no GPU."""
    return not record.getMessage().startswith("Setting accelerator to CPU")


def _load_model(name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """In float32, which is what the optimiser updates, whatever the file holds."""
    from crossalign.models.loading import load_model

    quiet_transformers()
    return load_model(name, flag="--model: ")
