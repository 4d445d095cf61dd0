"""`crossalign data`: builds training items, and checks data before it is trained on."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from crossalign.data import hub
from crossalign.data.builders import (
    MODES,
    TrainingItem,
    TranslationItems,
    build_items,
    check_mode_languages,
)
from crossalign.data.instruction_files import Records, keep_common_ids, read_records
from crossalign.data.pairs import Pair
from crossalign.files.text import DataError, write_json_lines

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

INPUT_HELP = (
    "bilingual, crosslingual: a directory with one file per language, CODE.json or NAME.CODE.json "
    "(also .jsonl, and .gz of each): Bactrian-X (a list or lines of objects with id, instruction, "
    "input, output), seed tasks (id, instruction, instances) or SQuAD (XQuAD). translation: a TSV "
    "or JSON-lines file of pairs, or two parallel text files; .gz of each. All modes: "
    "hub:NAME[:CONFIG][:SPLIT], a data set of the Hugging Face Hub or a folder of that form; "
    "CONFIG may hold {language}, which it is if not given for instructions; SPLIT is train"
)


def add_build_arguments(build: argparse.ArgumentParser) -> None:
    build.add_argument("--mode", choices=MODES, required=True, help="which builder")
    build.add_argument(
        "--languages",
        nargs="+",
        required=True,
        metavar="CODE",
        help="codes such as en de; the first is the pivot of crosslingual and the source of pairs",
    )
    build.add_argument("--input", nargs="+", required=True, metavar="PATH", help=INPUT_HELP)
    build.add_argument("--output", type=Path, required=True, metavar="FILE.jsonl", help="result")
    build.add_argument("--repeats", type=int, default=3, help="uses of each record or pair")
    build.add_argument("--seed", type=int, default=0, help="seed of all random choices")
    build.add_argument(
        "--ids",
        choices=("common", "same"),
        default="common",
        help="records whose id is not in every language: common leaves them out and says how many, "
        "same is an error",
    )
    add_cache_argument(build)


def add_cache_argument(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--cache",
        type=Path,
        metavar="DIR",
        help="where the index of a text file is kept for the next time; None = for this run alone, "
        "where temporary files live",
    )


def run_build(args: argparse.Namespace, argv: list[str]) -> None:
    try:
        check_mode_languages(args.mode, args.languages)
        is_hub = args.input[0].startswith(hub.PREFIX)
        source = hub.parse_source(args.input[0]) if is_hub else None
    except ValueError as error:
        args.parser.error(str(error))
    if args.repeats < 1:
        args.parser.error(f"argument --repeats: at least 1, got {args.repeats}")
    if args.output.is_dir() or not args.output.parent.is_dir():
        raise DataError(f"{args.output}: must be a file in an existing folder")
    most = 2 if args.mode == "translation" and source is None else 1
    if len(args.input) > most:
        args.parser.error(f"argument --input: at most {most} for this, got {len(args.input)}")
    if args.mode != "translation":
        if source is not None:
            records = hub.hub_records(source, args.languages)
        else:
            records = read_records(Path(args.input[0]), args.languages)
        if args.ids == "common":
            records = _with_common_ids(records)
        items = build_items(
            args.mode, records, args.languages, repeats=args.repeats, seed=args.seed
        )
        _write(args.output, items, len(items))
        return
    with tempfile.TemporaryDirectory(prefix="crossalign-") as temporary:
        pairs: Sequence[Pair]
        if source is not None:
            pairs = hub.HubPairs(source, args.languages)
        else:
            from crossalign.data.indexed_data import open_pairs

            paths = [Path(path) for path in args.input]
            pairs = open_pairs(paths, args.languages, args.cache or Path(temporary))
        made = TranslationItems(pairs, args.languages, repeats=args.repeats, seed=args.seed)
        _write(args.output, made.shuffled(), len(made))


def _with_common_ids(records: Records) -> Records:
    kept, left_out = keep_common_ids(records)
    for language, count in left_out.items():
        if count:
            total = len(records[language])
            print(
                f"left out {count} of {total} records of {language}: their ids do not stand in "
                "every language",
                file=sys.stderr,
            )
    return kept


def _write(path: Path, items: Iterable[TrainingItem], count: int) -> None:
    write_json_lines(path, items)
    print(f"wrote {path}: {count} items")


def add_check_arguments(check: argparse.ArgumentParser) -> None:
    data = check.add_mutually_exclusive_group(required=True)
    data.add_argument(
        "--pairs",
        nargs="+",
        type=Path,
        metavar="FILE",
        help="one TSV or JSON-lines file, or two parallel text files; .gz of each",
    )
    data.add_argument(
        "--lm-data", type=Path, metavar="FILE", help="items of `crossalign data build`; .gz too"
    )
    check.add_argument(
        "--model",
        metavar="NAME_OR_DIR",
        help="whose tokenizer gives lengths in tokens; None = none are given",
    )
    check.add_argument(
        "--max-ratio",
        type=float,
        default=5.0,
        help="of the UTF-8 bytes of the sides of a pair, above which it is doubtful",
    )
    check.add_argument("--json", action="store_true", help="as JSON")


def run_check(args: argparse.Namespace, argv: list[str]) -> None:
    from crossalign.data.check import check_items, check_pairs

    if args.pairs and len(args.pairs) > 2:
        args.parser.error(f"argument --pairs: one file or two, got {len(args.pairs)}")
    if not args.max_ratio >= 1:
        args.parser.error(f"argument --max-ratio: at least 1, got {args.max_ratio}")
    tokenizer, limit = _tokenizer_and_limit(args.model) if args.model else (None, None)
    if args.pairs:
        report = check_pairs(args.pairs, max_ratio=args.max_ratio, tokenizer=tokenizer, limit=limit)
    else:
        report = check_items(args.lm_data, tokenizer=tokenizer, limit=limit)
    if args.json:
        print(json.dumps(report, ensure_ascii=False, indent=2))
    else:
        print("\n".join(_as_text(report)))
    if report["unusable"]:
        raise DataError(
            f"{report['unusable']} of {report['unusable'] + report['usable']} lines cannot be "
            f"used, the first: {report['first_unusable'][0]}"
        )


def _tokenizer_and_limit(model: str) -> tuple[PreTrainedTokenizerBase, int | None]:
    """The tokenizer of a model, and the tokens that both take."""
    from transformers import AutoTokenizer

    from crossalign.cli.align import quiet_transformers
    from crossalign.models.encode import longest_input
    from crossalign.models.loading import load_config

    quiet_transformers()
    tokenizer = AutoTokenizer.from_pretrained(model)
    return tokenizer, longest_input(_Configured(load_config(model)), tokenizer)


class _Configured(NamedTuple):
    """What longest_input reads of a model."""

    config: PreTrainedConfig


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
