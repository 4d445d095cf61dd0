"""The options that every benchmark takes."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

import torch

from benchmarks.harness import Harness


def arguments_of(docstring: str, presets: Iterable[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=docstring.splitlines()[0])
    parser.add_argument("--preset", choices=list(presets), default="smoke")
    parser.add_argument("--group", nargs="+", help="only these groups of cases")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seconds", type=float, default=1.0, help="timing of one pass (default 1)")
    parser.add_argument(
        "--budget-seconds",
        type=float,
        default=float("inf"),
        help="start no further measurement after this time (default: none)",
    )
    parser.add_argument(
        "--row-seconds",
        type=float,
        default=float("inf"),
        help="give up an implementation of one case after this time (default: never)",
    )
    parser.add_argument("--output", type=Path, help="result file (default: named by the run)")
    return parser.parse_args()


def harness_of(subject: str, arguments: argparse.Namespace) -> Harness:
    return Harness(
        subject,
        arguments.device,
        arguments.output,
        seconds=arguments.seconds,
        budget_seconds=arguments.budget_seconds,
        row_seconds=arguments.row_seconds,
    )
