"""`crossalign check`: is what runs here right, and how fast is it?"""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

from crossalign.cli.parser import Parser

if TYPE_CHECKING:
    from crossalign.check.run import Report, Result

SUMMARY = "Compares what can run here with the float64 reference, and measures its speed."


def add_arguments(parser: Parser) -> None:
    parser.add_argument("--json", action="store_true", help="as JSON")


def run(parser: Parser, args: argparse.Namespace, argv: list[str]) -> None:
    """Exit status 1 where a check fails; a slow machine is no failure."""
    from crossalign.check.run import run_checks

    report = run_checks() if args.json else run_checks(_printed())
    if args.json:
        fields = {"ok": report.is_ok, **report._asdict()}
        print(json.dumps(fields, indent=2))
    else:
        print("\n".join([*_speed_lines(report), "", *_verdict(report)]))
    sys.stdout.flush()
    if not report.is_ok:
        raise SystemExit(1)


def _printed() -> Any:
    """Prints a title before the first result of a group, and each result."""
    seen: list[str] = []

    def tell(title: str, result: Result) -> None:
        if title not in seen:
            seen.append(title)
            print(title)
        print(_line(result), flush=True)

    return tell


def _line(result: Result) -> str:
    mark = "ok" if result["ok"] else "FAILED"
    found = result.get("detail", "")
    if "error" in result and result["limit"]:
        found = f"worst row off by {_number(result['error'])}, allowed {_number(result['limit'])}"
        found += "" if result["ok"] else f" ({result['where']})"
    elif "error" in result:
        found = "no bit differs" if result["ok"] else f"{result['error']:g} {result['where']}"
    seconds = f"{result['seconds']:5.1f} s" if "seconds" in result else " " * 7
    return f"  {mark:<6}  {result['name']:<26}  {seconds}  {found}"


def _number(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.1e}"


def _speed_lines(report: Report) -> list[str]:
    speed = report.speed
    if "rows" not in speed:
        return ["Speed", f"  not measured: {speed.get('detail', '')}"]
    size = f"{speed['pairs']:,} pairs of {speed['features']:,} features in {speed['dtype']}"
    lines = [f"Speed, {size}, forward and backward"]
    for name, row in speed["rows"].items():
        lines.append(
            f"  {name:<10} {row['ours_ms']:8.1f} ms, plain PyTorch {row['eager_ms']:8.1f} ms: "
            f"{row['eager_ms'] / row['ours_ms']:.2f} times as fast; "
            f"{100 * row['share_of_product']:.0f} % of the rate of a matrix product"
        )
    return lines


def _verdict(report: Report) -> list[str]:
    failed = [result for result in report.results if not result["ok"]]
    count = len(report.results)
    if not failed:
        return [f"All {count} checks passed in {report.seconds:.0f} s on {report.device}."]
    facts = {name: value for name, value in report.info.items() if name != "notes"}
    block = {"info": facts, "device": report.device, "failed": failed, "speed": report.speed}
    return [
        f"{len(failed)} of {count} checks failed. Please paste this into a bug report:",
        "",
        "```json",
        json.dumps(block, indent=1),
        "```",
    ]
