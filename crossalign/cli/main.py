"""The command `crossalign`: reads arguments and calls; only what needs PyTorch imports it."""

from __future__ import annotations

import argparse
import json
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from crossalign.alignment.config import TrainingConfig
from crossalign.cli import align, analyze, data, evaluate


class Parser(argparse.ArgumentParser):
    """Shows defaults in its help, and says what is wrong in one line."""

    def __init__(self, **options: Any) -> None:
        options.setdefault("formatter_class", argparse.ArgumentDefaultsHelpFormatter)
        super().__init__(**options, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {_one_line(message)} (see {self.prog} --help)\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 success, 1 failure, 2 wrong argument."""
    argv = sys.argv[1:] if argv is None else list(argv)
    args = build_parser().parse_args(argv)
    try:
        args.run(args, argv)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("crossalign: interrupted", file=sys.stderr)
        return 1
    except Exception as error:
        if args.debug:
            traceback.print_exc()
        message = _one_line(str(error)) or type(error).__name__
        if isinstance(error, ImportError) and "pip install" not in message:
            message += "; pip install 'crossalign[train]' brings what this command needs"
        print(f"crossalign: error: {message}", file=sys.stderr)
        return 1
    return 0


def build_parser() -> Parser:
    parser = Parser(
        prog="crossalign", description="Aligns the languages of causal language models."
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_demo(commands)
    _add_data(commands)
    summary = "Aligns a model's languages on translation pairs."
    align.add_arguments(_add_command(commands, "align", align.run, summary))
    summary = "Shows how near a model's languages are, layer by layer, before and after."
    analyze.add_arguments(_add_command(commands, "analyze", analyze.run, summary))
    summary = "Measures in-context learning and translation in each language."
    evaluate.add_arguments(_add_command(commands, "evaluate", evaluate.run, summary))
    _add_info(commands)
    return parser


def _add_command(commands: Any, name: str, run: Any, summary: str) -> Parser:
    command: Parser = commands.add_parser(name, help=summary[0].lower() + summary[1:].rstrip("."))
    command.description = summary
    command.add_argument("--debug", action="store_true", help="show the traceback of an error")
    command.set_defaults(run=run, parser=command)
    return command


def _add_demo(commands: Any) -> None:
    summary = "Aligns a tiny model on built-in text and shows what changed."
    demo = _add_command(commands, "demo", _demo, summary)
    demo.add_argument(
        "--output", type=Path, required=True, metavar="DIR", help="new directory for the results"
    )
    demo.add_argument("--device", default="cpu", help="cpu, cuda, ...")
    demo.add_argument("--seed", type=int, default=0, help="seed of text, model and training")
    demo.add_argument("--smoke", action="store_true", help="a few steps, to see that it runs")


def _demo(args: argparse.Namespace, argv: list[str]) -> None:
    from crossalign.demo.run import run_demo
    from crossalign.models.loading import choose_device

    try:
        TrainingConfig(seed=args.seed)
        choose_device(args.device)
    except ValueError as error:
        args.parser.error(str(error))
    align.quiet_transformers()
    run_demo(args.output, device=args.device, seed=args.seed, smoke=args.smoke)


def _add_data(commands: Any) -> None:
    command = commands.add_parser(
        "data", help="make and check training data", description="Makes and checks training data."
    )
    parts = command.add_subparsers(title="commands", metavar="COMMAND", required=True)
    summary = "Builds training items from instruction data or translation pairs."
    build = _add_command(parts, "build", data.run_build, summary)
    data.add_build_arguments(build)
    summary = "Shows what is in training data, and which lines are doubtful or cannot be used."
    check = _add_command(parts, "check", data.run_check, summary)
    data.add_check_arguments(check)


def _add_info(commands: Any) -> None:
    info = _add_command(commands, "info", _info, "Shows versions and what can run here.")
    info.add_argument("--json", action="store_true", help="as JSON")


def _info(args: argparse.Namespace, argv: list[str]) -> None:
    from crossalign.build_report import build_info

    report = build_info()
    if args.json:
        print(json.dumps(report, indent=2))
        return
    notes = report.pop("notes")
    for name, value in report.items():
        shown = ", ".join(value) if isinstance(value, list) else value
        print(f"{name}: {'none' if shown in ('', None) else shown}")
    for name, note in notes.items():
        print(f"note on {name}: {note}")


def _one_line(message: str) -> str:
    return " ".join(message.split())
