"""The command `crossalign`: reads arguments and calls; PyTorch is loaded when a command runs."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any

from crossalign.alignment.stop_request import exit_on_sigterm
from crossalign.cli import align, analyze, check, data_build, data_check, demo, evaluate, info
from crossalign.cli.parser import Parser, one_line
from crossalign.optional_modules import EXTRA_OF
from crossalign.version import __version__


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 success, 1 failure, 2 wrong argument."""
    argv = sys.argv[1:] if argv is None else list(argv)
    parser = build_parser()
    if not argv:
        parser.print_help()
        return 0
    args = parser.parse_args(argv)
    try:
        with exit_on_sigterm():
            args.run(args.parser, args, argv)
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
        message = one_line(_explained(error)) or type(error).__name__
        if isinstance(error, ImportError) and "pip install" not in message:
            extra = EXTRA_OF.get((error.name or "").partition(".")[0], "train")
            message += f"; pip install 'crossalign[{extra}]' brings what this command needs"
        print(f"crossalign: error: {message}", file=sys.stderr)
        return 1
    return 0


def _explained(error: Exception) -> str:
    """What is said of an error; a full disk names the file and the way out."""
    from crossalign.files.output import FULL

    if not isinstance(error, OSError) or error.errno not in FULL:
        return str(error)
    place = error.filename2 or error.filename or "standard output"  # all else has a name
    return (
        f"{place}: cannot be written: {error.strerror}; make room there, or name another folder "
        "(--output, --cache or TMPDIR)"
    )


def _print_help(parser: Parser, args: argparse.Namespace, argv: Sequence[str]) -> None:
    """What a command with parts does where none of them is named."""
    parser.print_help()


def build_parser() -> Parser:
    parser = Parser(
        prog="crossalign", description="Aligns the languages of causal language models."
    )
    parser.add_argument("--version", action="version", version=f"crossalign {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_command(commands, "demo", demo)
    part = commands.add_parser(
        "data", help="make and check training data", description="Makes and checks training data."
    )
    part.set_defaults(run=_print_help, parser=part, debug=False)
    parts = part.add_subparsers(title="commands", metavar="COMMAND")
    _add_command(parts, "build", data_build)
    _add_command(parts, "check", data_check)
    for name, command in (("align", align), ("analyze", analyze), ("evaluate", evaluate)):
        _add_command(commands, name, command)
    _add_command(commands, "check", check)
    _add_command(commands, "info", info)
    return parser


def _add_command(commands: Any, name: str, command: Any) -> None:
    """command: has SUMMARY, add_arguments(parser) and run(parser, args, argv)."""
    summary = command.SUMMARY
    parser: Parser = commands.add_parser(name, help=summary[0].lower() + summary[1:].rstrip("."))
    parser.description = summary
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    command.add_arguments(parser)
    parser.set_defaults(run=command.run, parser=parser)
