"""`crossalign info`: versions and what can run here."""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass

from crossalign.cli.parser import Parser
from crossalign.settings import add_flags, from_arguments, setting

SUMMARY = "Shows versions and what can run here."


@dataclass(frozen=True, kw_only=True)
class InfoSettings:
    """The flags of `crossalign info`."""

    json: bool = setting(False, "as JSON", switch=True)


def add_arguments(parser: Parser) -> None:
    add_flags(parser, InfoSettings)


def run(parser: Parser, args: argparse.Namespace, argv: list[str]) -> None:
    from crossalign.build_report import build_info

    settings = from_arguments(InfoSettings, args)
    report = build_info()
    if settings.json:
        print(json.dumps(report, indent=2))
        return
    notes = report.pop("notes")
    for name, value in report.items():
        shown = ", ".join(value) if isinstance(value, list) else value
        print(f"{name}: {'none' if shown in ('', None) else shown}")
    for name, note in notes.items():
        print(f"note on {name}: {note}")
