"""`crossalign data check`: shows what is in data before it is trained on."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crossalign.cli.parser import Parser
from crossalign.data.pair_sources import PairSource, parse_pair_sources
from crossalign.files.text import DataError
from crossalign.settings import (
    SettingError,
    add_flags,
    check_settings,
    from_arguments,
    setting,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SUMMARY = "Shows what is in training data, and which lines are doubtful or cannot be used."


@dataclass(frozen=True, kw_only=True)
class CheckSettings:
    """The flags of `crossalign data check`."""

    pairs: tuple[str, ...] = setting(
        (),
        "one TSV or JSON-lines file, or two parallel text files; .gz of each. Several corpora, as "
        "`crossalign align` takes them: en-de:FILE or en-de:FILE,FILE ...",
        metavar="FILE",
    )
    lm_data: Path | None = setting(
        None, "items of `crossalign data build`; .gz too", metavar="FILE"
    )
    model: str | None = setting(
        None,
        "model whose tokenizer counts tokens; None = no lengths in tokens",
        metavar="NAME_OR_DIR",
    )
    max_ratio: float = setting(
        5.0,
        "a pair is doubtful if one side has more than X times the UTF-8 bytes of the other",
        lowest=1,
    )
    json: bool = setting(False, "as JSON", switch=True)

    def __post_init__(self) -> None:
        check_settings(self)
        try:
            _ = self.sources
        except ValueError as error:
            raise SettingError(str(error), "pairs") from None

    @property
    def sources(self) -> list[PairSource]:
        """The corpora of --pairs."""
        return parse_pair_sources(self.pairs) if self.pairs else []


def add_arguments(parser: Parser) -> None:
    add_flags(parser, CheckSettings, exclusive=("pairs", "lm_data"))


def run(parser: Parser, args: argparse.Namespace, argv: list[str]) -> None:
    with parser.argument_errors():
        settings = from_arguments(CheckSettings, args)
    from crossalign.data.check import check_items, check_pairs

    by_model: dict[str, Any] = {}
    if settings.model is not None:
        by_model = dict(
            zip(("tokenizer", "limit"), _tokenizer_and_limit(settings.model), strict=True)
        )
    if settings.lm_data is not None:
        reports = {str(settings.lm_data): check_items(settings.lm_data, **by_model)}
    else:
        ratio = settings.max_ratio
        reports = {
            str(source): check_pairs(
                source.paths, max_ratio=ratio, languages=source.languages, **by_model
            )
            for source in settings.sources
        }
    report: Mapping[str, Any] = reports if len(reports) > 1 else next(iter(reports.values()))
    if settings.json:
        print(json.dumps(report, ensure_ascii=False, indent=2))
    else:
        print("\n".join(_as_text(report)))
    unusable = sum(each["unusable"] for each in reports.values())
    if unusable:
        lines = unusable + sum(each["usable"] for each in reports.values())
        first = next(each["first_unusable"][0] for each in reports.values() if each["unusable"])
        raise DataError(f"{unusable} of {lines} lines cannot be used, the first: {first}")


def _tokenizer_and_limit(model: str) -> tuple[PreTrainedTokenizerBase, int | None]:
    """The tokenizer of a model, and the tokens that both take."""
    from crossalign.cli.quiet import quiet_transformers
    from crossalign.models.encode import longest_input
    from crossalign.models.loading import load_without_weights

    quiet_transformers()
    hollow, tokenizer = load_without_weights(model, "--model: ")
    return tokenizer, longest_input(hollow, tokenizer)


def _as_text(report: Mapping[str, Any], indent: str = "") -> Iterator[str]:
    """Nested values as indented lines; a mapping of numbers as one line."""
    for name, value in report.items():
        if isinstance(value, Mapping) and not any(isinstance(v, Mapping) for v in value.values()):
            shown = ", ".join(f"{key} {_shown(each)}" for key, each in value.items())
            yield f"{indent}{name}: {shown or 'none'}"
        elif isinstance(value, Mapping):
            yield f"{indent}{name}:"
            yield from _as_text(value, indent + "  ")
        else:
            yield f"{indent}{name}: {_shown(value)}"


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return " | ".join(map(str, value)) or "none"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
