"""The flags of align_real_model, and what may differ between runs that share a folder."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.provenance import ROOT

CHOICES = (
    "layer=4,8",
    "center=batch,side,none",
    "pool_tokens=content,all",
    "learning_rate=2e-5,5e-5",
    "temperature=0.05,0.1",
)
MORE_ARMS = ("joint", "contrast", "instructions")
TASKS = (
    "xwinograd:en,fr,ru,zh",
    "xcopa:id,sw,zh",
    "pawsx:en,de,zh",
    "xnli:en,de,sw,zh",
)


def parse_arguments(argv: Sequence[str] | None, description: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    data = Path(os.environ.get("CROSSALIGN_DATA", ROOT.parent / "shared" / "data"))
    parser.add_argument("--model", required=True, help="directory, .gguf file or hub name")
    parser.add_argument("--data", type=Path, default=data)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "real_model")
    parser.add_argument("--output", type=Path, help="result file (None: named by the run)")
    parser.add_argument("--collect", action="store_true", help="write what is done so far")
    parser.add_argument("--seeds", type=int, default=3, help="of paper and best")
    parser.add_argument(
        "--more",
        nargs="*",
        choices=MORE_ARMS,
        default=list(MORE_ARMS),
        help="arms of one seed beside nothing, paper and best",
    )
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--search-steps", type=int, default=25, help="of a setting that is tried")
    parser.add_argument(
        "--choices",
        nargs="+",
        default=list(CHOICES),
        help="settings that are tried, one after the other; a single value is taken untried",
    )
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--texts", type=int, default=8, help="instructions per step")
    parser.add_argument("--max-length", type=int, default=64)
    parser.add_argument("--paper-learning-rate", type=float, default=1e-5)
    parser.add_argument("--choosing-lines", type=int, default=100)
    parser.add_argument("--test-lines", type=int, default=300)
    parser.add_argument("--scored-lines", type=int, default=100, help="for bits per byte")
    parser.add_argument("--tasks", nargs="*", default=list(TASKS), help="TASK:CODE,CODE ...")
    parser.add_argument("--task-items", type=int, default=200, help="of a task and language")
    parser.add_argument("--prompts", type=int, default=20, help="questions of a language")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="bf16")
    return parser.parse_args(argv)


def named_values(texts: Sequence[str], separator: str) -> dict[str, list[str]]:
    """ "layer=4,8" -> {"layer": ["4", "8"]}"""
    return {
        name: values.split(",") for name, _, values in (each.partition(separator) for each in texts)
    }


def check_same_sizes(args: argparse.Namespace) -> None:
    """Parts of one folder are of one experiment; only what is measured more may change."""
    more = ("seeds", "more", "tasks", "task_items", "prompts")
    free = ("data", "runs", "output", "model", "collect", "threads", *more)
    sizes: dict[str, Any] = {name: value for name, value in vars(args).items() if name not in free}
    path = args.runs / "sizes.json"
    args.runs.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        path.write_text(json.dumps(sizes), encoding="utf-8")
    elif json.loads(path.read_text(encoding="utf-8")) != sizes:
        raise SystemExit(f"{path}: another experiment is in this folder; name another --runs")
