"""`crossalign evaluate`: its flags, the run they describe, and the file it writes."""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crossalign.cli.evaluate_settings import TRANSLATION, EvaluateSettings
from crossalign.cli.parser import Parser
from crossalign.evaluation.finished_parts import FinishedParts
from crossalign.evaluation.tasks.items import TASKS
from crossalign.files.lock import held
from crossalign.files.output import check_output_file, write_json_lines, write_whole
from crossalign.files.text import DataError
from crossalign.settings import SettingError, add_flags, from_arguments

if TYPE_CHECKING:
    from crossalign.evaluation.in_context import InContextSettings
    from crossalign.evaluation.tasks.items import TaskData
    from crossalign.evaluation.translation import TranslationSettings

SUMMARY = "Measures in-context learning and translation in each language."


def add_arguments(parser: Parser) -> None:
    add_flags(parser, EvaluateSettings)


def run(parser: Parser, args: argparse.Namespace, argv: list[str]) -> None:
    """Checks everything that can be checked before a model is loaded, then evaluates."""
    with parser.argument_errors():
        settings = from_arguments(EvaluateSettings, args)
    if settings.check_data:
        _report_data(settings)
        return
    assert settings.model is not None and settings.output is not None  # checked with the settings
    if settings.output.is_dir() or not settings.output.parent.is_dir():
        parser.error(f"argument --output: {settings.output} must be a file in an existing folder")
    with held(settings.items_file):
        _check_outputs(settings)
        with parser.argument_errors():
            choices, translation = _parts(settings)
        _evaluate_all(settings, choices, translation)


def _evaluate_all(
    settings: EvaluateSettings,
    choices: InContextSettings | None,
    translation: TranslationSettings | None,
) -> None:
    """Scores one model or two, and writes what came of it."""
    assert settings.model is not None and settings.output is not None  # checked with the settings
    from crossalign.cli.quiet import quiet_transformers
    from crossalign.evaluation.summary import compare

    quiet_transformers()
    data = _read_data(settings, choices, translation)
    _check_models(settings, choices, translation, data)
    result: dict[str, Any] = {"settings": settings.plain(), "versions": _versions()}
    read = {"inputs": _inputs(settings, data)}
    asked = {**settings.plain(), **result["versions"], **read}
    finished = FinishedParts(settings.parts_file, asked, resume=settings.resume)
    if settings.resume:
        print(f"{len(finished)} parts are finished: {settings.parts_file}", file=sys.stderr)
    log = _evaluate(settings.model, settings, choices, translation, data, result, finished)
    if settings.compare:
        compared: dict[str, Any] = {}
        log += _evaluate(settings.compare, settings, choices, translation, data, compared, finished)
        result["compared"] = compared
        ours, theirs = (
            [each for each in log if each["model"] == name and "correct" in each]
            for name in (settings.model, settings.compare)
        )
        result["comparison"] = compare(ours, theirs)
    write_json_lines(settings.items_file, log)
    write_whole(settings.output, json.dumps(result, ensure_ascii=False, indent=1) + "\n")
    finished.remove()
    print(_as_text(result))
    print(f"wrote {settings.output} and {settings.items_file}: {len(log)} items")


def _check_outputs(settings: EvaluateSettings) -> None:
    """What a stopped evaluation left is taken up or replaced only where that was asked for."""
    assert settings.output is not None
    path = settings.parts_file
    is_stopped = settings.resume and path.exists()  # perhaps when it had written its items
    check_output_file(settings.output, overwrite=settings.overwrite)
    check_output_file(settings.items_file, overwrite=settings.overwrite or is_stopped)
    check_output_file(path, overwrite=True)
    if path.exists() and not (settings.resume or settings.overwrite):
        raise FileExistsError(
            f"{path}: a stopped evaluation left its finished parts; add --resume to go on with it, "
            "or --overwrite to begin anew"
        )


def _inputs(settings: EvaluateSettings, data: list[TaskData]) -> dict[str, str]:
    """What the scores come from: the bytes of task files, the state of the models' files."""
    from crossalign.evaluation.translation import read_flores

    found = {}
    splits = [split for part in data for split in (part.test, part.demos) if split]
    read = [Path(name) for split in splits for name in split.files]
    if TRANSLATION in settings.tasks:
        codes = sorted({code for pair in settings.directions for code in pair})
        read += [read_flores(Path(settings.data), code)[0] for code in codes]
    for path in read:
        if path.is_file():
            found[str(path)] = hashlib.sha256(path.read_bytes()).hexdigest()
    for model in filter(None, (settings.model, settings.compare)):
        files = sorted(Path(model).iterdir()) if Path(model).is_dir() else [Path(model)]
        for path in files:
            if path.is_file():
                found[str(path)] = f"{path.stat().st_size} bytes of {path.stat().st_mtime_ns}"
    return found


def _report_data(settings: EvaluateSettings) -> None:
    from crossalign.evaluation.data_report import report_data

    report, bad = report_data(Path(settings.data), settings.tasks, settings.languages or None)
    print(report)
    if bad:
        raise DataError(f"bad files: {'; '.join(bad)}")


def _parts(
    settings: EvaluateSettings,
) -> tuple[InContextSettings | None, TranslationSettings | None]:
    """What is asked of choice tasks and of translation."""
    from crossalign.evaluation.in_context import InContextSettings
    from crossalign.evaluation.translation import FLORES_CODES, TranslationSettings
    from crossalign.models.loading import choose_device

    same: Any = {name: getattr(settings, name) for name in ("shots", "seeds", "limit", "too_long")}
    tasks = [task for task in settings.tasks if task != TRANSLATION]
    languages = settings.languages
    chosen = [code for code in languages if any(code in TASKS[task].languages for task in tasks)]
    known = {*chosen, *(FLORES_CODES if TRANSLATION in settings.tasks else ())}
    if unknown := [code for code in languages if code not in known]:
        message = f"languages must be those of a task, but none has {', '.join(unknown)}"
        raise SettingError(message, "languages")
    choose_device(settings.device)
    choices, translation = None, None
    if tasks:
        same_language: Any = {"prompt_language": settings.prompt_language, **same}
        choices = InContextSettings(tasks, chosen, prompts=settings.prompts, **same_language)
    if TRANSLATION in settings.tasks:
        length = settings.max_new_tokens
        translation = TranslationSettings(settings.directions, max_tokens=length, **same)
    return choices, translation


def _read_data(
    settings: EvaluateSettings,
    choices: InContextSettings | None,
    translation: TranslationSettings | None,
) -> list[TaskData]:
    """Every file that is needed, so that a bad one stops the run before it starts."""
    from crossalign.evaluation.in_context import read_task_data
    from crossalign.evaluation.translation import read_flores

    data: list[TaskData] = []
    if choices:
        data = read_task_data(choices, settings.data)
        for task in choices.tasks:
            lacks = [code for name, code in choices.left_out if name == task]
            if lacks:
                print(f"{task} has no {' '.join(lacks)}: left out", file=sys.stderr)
    if translation:
        for language in {code for pair in translation.directions for code in pair}:
            read_flores(Path(settings.data), language)
    return data


def _check_models(
    settings: EvaluateSettings,
    choices: InContextSettings | None,
    translation: TranslationSettings | None,
    data: list[TaskData],
) -> None:
    """What is known of the models before the first score: names, files, tokens, and whether items
    fit into the second one and sentences into both, which would come up hours later."""
    from crossalign.evaluation.in_context import check_items
    from crossalign.evaluation.translation import check_translation
    from crossalign.models.loading import load_without_weights
    from crossalign.models.model_files import check_weight_files

    for name in (settings.model, settings.compare):
        if name is None:
            continue
        check_weight_files(name)
        model, tokenizer = load_without_weights(name)
        if choices and name == settings.compare:  # those of the first come up first
            check_items(model, tokenizer, data, choices)
        if translation:
            check_translation(model, tokenizer, Path(settings.data), translation)


def _evaluate(
    name: str,
    settings: EvaluateSettings,
    choices: InContextSettings | None,
    translation: TranslationSettings | None,
    data: list[TaskData],
    result: dict[str, Any],
    finished: FinishedParts,
) -> list[dict[str, Any]]:
    """Fills the result of one model, and returns the log of its items."""
    from crossalign.evaluation.in_context import evaluate_in_context
    from crossalign.evaluation.summary import summarize
    from crossalign.evaluation.translation import evaluate_translation

    model, tokenizer = _load(name, settings.dtype, settings.device)
    options: Any = {"batch_size": settings.batch_size, "progress": sys.stderr.isatty()}
    options["finished"] = finished.of(name)
    log: list[dict[str, Any]] = []
    result["model"] = name
    if choices:
        found = evaluate_in_context(model, tokenizer, data, choices, **options)
        result |= {"results": found.records, "summary": summarize(found.records)}
        log += found.items
    if translation:
        records, outputs = evaluate_translation(
            model, tokenizer, Path(settings.data), translation, **options
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
    from crossalign.evaluation.summary import summary_table, table, translation_table

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
