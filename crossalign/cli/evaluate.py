"""`crossalign evaluate`: its flags, the run they describe, and the file it writes."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import sys
from pathlib import Path
from typing import Any

from crossalign.cli.align import quiet_transformers
from crossalign.evaluation.data_report import report_data
from crossalign.evaluation.in_context import (
    PROMPTS,
    TOO_LONG,
    InContextSettings,
    TaskData,
    evaluate_in_context,
    read_task_data,
)
from crossalign.evaluation.summary import (
    compare,
    summarize,
    summary_table,
    table,
    translation_table,
)
from crossalign.evaluation.tasks.items import TASKS
from crossalign.evaluation.translation import (
    FLORES_CODES,
    TranslationSettings,
    evaluate_translation,
    read_flores,
)
from crossalign.files.text import DataError, write_json_lines, write_whole

_TRANSLATION = "flores"
_DTYPES = ("float32", "bfloat16", "float16")


def add_arguments(evaluate: argparse.ArgumentParser) -> None:
    """The flags of the command."""
    add = evaluate.add_argument
    add("--model", metavar="DIR", help="the causal language model, a directory or a name")
    add("--compare", metavar="DIR2", help="a second model, for a paired test on the same items")
    add(
        "--tasks",
        nargs="+",
        choices=(*TASKS, _TRANSLATION),
        default=list(TASKS),
        metavar="TASK",
        help=f"of {' '.join(TASKS)}; {_TRANSLATION} is translation",
    )
    add("--languages", nargs="+", metavar="CODE", help="such as en zh; what a task lacks is said")
    add(
        "--data",
        required=True,
        metavar="DIR",
        help='folder of the task files in their release formats, or "hub" for the Hugging Face hub',
    )
    add("--shots", nargs="+", type=int, default=[0], metavar="K", help="demonstrations per item")
    add("--seeds", nargs="+", type=int, default=[0], metavar="N", help="which demonstrations")
    add("--limit", type=int, metavar="N", help="the first N items of each task; None = all")
    add(
        "--prompts",
        choices=PROMPTS,
        default="paper",
        help="paper: each choice in a text, the whole of which is scored; lm-eval: its own prompts",
    )
    add(
        "--prompt-language",
        metavar="CODE",
        help="language of the prompt's words; None = that of the sample",
    )
    add(
        "--translation-pairs",
        nargs="+",
        metavar="CODE-CODE",
        help=f"directions of {_TRANSLATION}, such as en-de; None = English to and from --languages",
    )
    add("--max-new-tokens", type=int, default=256, metavar="N", help="of a translation")
    add(
        "--too-long",
        choices=TOO_LONG,
        default="error",
        help="what to do with an item beyond the model's positions; demonstrations are dropped "
        "first, and no text is ever cut",
    )
    add("--batch-size", type=int, default=8, metavar="N", help="texts run at once")
    add("--device", default="auto", help="auto, cpu, cuda, ...")
    add("--dtype", choices=_DTYPES, default="float32", help="in which the models run")
    add("--output", type=Path, metavar="FILE.json", help="result; FILE.items.jsonl logs each item")
    add(
        "--check-data",
        action="store_true",
        help="list the files in --data with their numbers of items, and do nothing else",
    )


def run(args: argparse.Namespace, argv: list[str]) -> None:
    """Checks everything that can be checked before a model is loaded, then evaluates."""
    if args.check_data:
        report, bad = report_data(Path(args.data), args.tasks, args.languages)
        print(report)
        if bad:
            raise DataError(f"bad files: {'; '.join(bad)}")
        return
    choices, translation = _settings(args)
    quiet_transformers()
    data: list[TaskData] = []
    if choices:
        data = read_task_data(choices, args.data)
        for task in choices.tasks:
            lacks = [code for name, code in choices.left_out if name == task]
            if lacks:
                print(f"{task} has no {' '.join(lacks)}: left out", file=sys.stderr)
    if translation:
        for language in {code for pair in translation.directions for code in pair}:
            read_flores(Path(args.data), language)
    result: dict[str, Any] = {
        "settings": {
            name: str(value) if isinstance(value, Path) else value
            for name, value in vars(args).items()
            if name not in ("run", "parser", "debug", "check_data")
        },
        "versions": _versions(),
    }
    log = _evaluate(args.model, args, choices, translation, data, result)
    if args.compare:
        compared: dict[str, Any] = {}
        log += _evaluate(args.compare, args, choices, translation, data, compared)
        result["compared"] = compared
        ours, theirs = (
            [each for each in log if each["model"] == name and "correct" in each]
            for name in (args.model, args.compare)
        )
        result["comparison"] = compare(ours, theirs)
    items = args.output.with_suffix(".items.jsonl")
    write_json_lines(items, log)
    write_whole(args.output, json.dumps(result, ensure_ascii=False, indent=1) + "\n")
    print(_as_text(result))
    print(f"wrote {args.output} and {items}: {len(log)} items")


def _settings(
    args: argparse.Namespace,
) -> tuple[InContextSettings | None, TranslationSettings | None]:
    """What the flags ask for, or exit with status 2."""
    from crossalign.models.loading import choose_device

    parser: argparse.ArgumentParser = args.parser
    missing = [f"--{name}" for name in ("model", "languages", "output") if not getattr(args, name)]
    if missing and not (missing == ["--languages"] and args.translation_pairs):
        parser.error(f"missing: {', '.join(missing)}")
    if args.model == args.compare:
        parser.error("argument --compare: the same as --model")
    if args.output.is_dir() or not args.output.parent.is_dir():
        parser.error(f"argument --output: {args.output} must be a file in an existing folder")
    if args.batch_size < 1:
        parser.error(f"argument --batch-size: at least 1, got {args.batch_size}")
    if args.data == "hub" and _TRANSLATION in args.tasks:
        parser.error(f"argument --data: {_TRANSLATION} is read from files alone")
    same = {name: getattr(args, name) for name in ("shots", "seeds", "limit", "too_long")}
    tasks = [task for task in args.tasks if task != _TRANSLATION]
    languages = args.languages or []
    chosen = [code for code in languages if any(code in TASKS[task].languages for task in tasks)]
    known = {*chosen, *(FLORES_CODES if _TRANSLATION in args.tasks else ())}
    if unknown := [code for code in languages if code not in known]:
        parser.error(f"argument --languages: no task has {', '.join(unknown)}")
    choices, translation = None, None
    try:
        choose_device(args.device)
        if tasks:
            choices = InContextSettings(
                tasks,
                chosen,
                prompts=args.prompts,
                prompt_language=args.prompt_language,
                **same,
            )
        if _TRANSLATION in args.tasks:
            directions = _directions(args.translation_pairs, languages)
            translation = TranslationSettings(directions, max_tokens=args.max_new_tokens, **same)
    except ValueError as error:
        parser.error(str(error))
    return choices, translation


def _directions(pairs: list[str] | None, languages: list[str]) -> list[tuple[str, str]]:
    if pairs is None:
        others = [code for code in languages if code != "en"]
        return [pair for code in others for pair in (("en", code), (code, "en"))]
    found = []
    for pair in pairs:
        source, dash, target = pair.partition("-")
        if not (source and dash and target):
            raise ValueError(f"argument --translation-pairs: such as en-de, got {pair!r}")
        found.append((source, target))
    return found


def _evaluate(
    name: str,
    args: argparse.Namespace,
    choices: InContextSettings | None,
    translation: TranslationSettings | None,
    data: list[TaskData],
    result: dict[str, Any],
) -> list[dict[str, Any]]:
    """Fills the result of one model, and returns the log of its items."""
    model, tokenizer = _load(name, args.dtype, args.device)
    options = {"batch_size": args.batch_size, "progress": sys.stderr.isatty()}
    log: list[dict[str, Any]] = []
    result["model"] = name
    if choices:
        found = evaluate_in_context(model, tokenizer, data, choices, **options)
        result |= {"results": found.records, "summary": summarize(found.records)}
        log += found.items
    if translation:
        records, outputs = evaluate_translation(
            model, tokenizer, Path(args.data), translation, **options
        )
        result["translation"] = records
        log += outputs
    return [{"model": name, **each} for each in log]


def _load(name: str, dtype: str, device: str) -> tuple[Any, Any]:
    from crossalign.models.loading import load_model

    return load_model(name, dtype=dtype, device=device)


def _versions() -> dict[str, str]:
    found = {}
    for name in ("crossalign", "torch", "transformers", "lm_eval", "sacrebleu"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def _as_text(result: dict[str, Any]) -> str:
    parts = []
    for each in (result, result.get("compared", {})):
        if not each:
            continue
        parts.append(f"model: {each['model']}")
        if "results" in each:
            tests = result.get("comparison", ()) if each is result else ()
            parts += [table(each["results"], tests), summary_table(each["summary"])]
        if "translation" in each:
            parts.append(translation_table(each["translation"]))
    return "\n".join(parts)
