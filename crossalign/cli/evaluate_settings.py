"""The flags of `crossalign evaluate`, and what follows from them without a model or a file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crossalign.evaluation.tasks.items import TASKS
from crossalign.files.output import check_is_no_input
from crossalign.settings import (
    SettingError,
    check_settings,
    device_setting,
    dtype_setting,
    names_of,
    overwrite_setting,
    setting,
)

TRANSLATION = "flores"
_DATA, _ITEMS, _MODEL = "models, data and output", "items and prompts", "how the models run"


@dataclass(frozen=True, kw_only=True)
class EvaluateSettings:
    """The flags of `crossalign evaluate`."""

    model: str | None = setting(
        None, "the causal language model, a directory or a name", group=_DATA, metavar="DIR"
    )
    compare: str | None = setting(
        None, "a second model, for a paired test on the same items", group=_DATA, metavar="DIR2"
    )
    tasks: tuple[str, ...] = setting(
        tuple(TASKS),
        f"of {' '.join(TASKS)}; {TRANSLATION} is translation",
        group=_DATA,
        choices=(*TASKS, TRANSLATION),
        metavar="TASK",
    )
    languages: tuple[str, ...] = setting(
        (), "such as en zh; a task without one says so", group=_DATA, metavar="CODE"
    )
    data: str = setting(
        "",
        'folder of the task files in their release formats, or "hub" for the Hugging Face hub',
        group=_DATA,
        metavar="DIR",
    )
    output: Path | None = setting(
        None, "result; FILE.items.jsonl logs each item", group=_DATA, metavar="FILE.json"
    )
    overwrite: bool = overwrite_setting(_DATA)
    resume: bool = setting(
        False,
        "go on with a stopped evaluation of --output; its finished parts are in FILE.parts.jsonl",
        group=_DATA,
        switch=True,
    )
    check_data: bool = setting(
        False,
        "list the files in --data with their numbers of items, and do nothing else; needs no model",
        group=_DATA,
        switch=True,
    )
    shots: tuple[int, ...] = setting(
        (0,), "demonstrations per item", group=_ITEMS, metavar="K", lowest=0
    )
    seeds: tuple[int, ...] = setting((0,), "seeds that choose the demonstrations", group=_ITEMS)
    limit: int | None = setting(
        None, "the first N items of each task; None = all", group=_ITEMS, lowest=1
    )
    prompts: str = setting(
        "paper",
        "paper: scores the whole text that each choice completes; lm-eval: uses lm-eval's prompts",
        group=_ITEMS,
        choices=("paper", "lm-eval"),
    )
    prompt_language: str | None = setting(
        None,
        "language of the prompt's words; None = that of the sample",
        group=_ITEMS,
        metavar="CODE",
    )
    translation_pairs: tuple[str, ...] = setting(
        (),
        f"directions of {TRANSLATION}, such as en-de; without: English to and from --languages",
        group=_ITEMS,
        metavar="CODE-CODE",
    )
    max_new_tokens: int = setting(256, "longest translation, in tokens", group=_ITEMS, lowest=1)
    too_long: str = setting(
        "error",
        "what to do with an item longer than the model's context; demonstrations are dropped "
        "first, and no text is ever cut",
        group=_ITEMS,
        choices=("error", "skip"),
    )
    batch_size: int = setting(8, "texts run at once", group=_MODEL, lowest=1)
    device: str = device_setting(_MODEL)
    dtype: str = dtype_setting(_MODEL)

    def __post_init__(self) -> None:
        check_settings(self)
        needed = ("data",) if self.check_data else ("model", "languages", "data", "output")
        missing = [f"--{name}" for name in needed if not getattr(self, name)]
        if missing and not (missing == ["--languages"] and self.translation_pairs):
            raise SettingError(f"missing: {', '.join(missing)}")
        if self.check_data:
            return
        assert self.output is not None
        if self.resume and self.overwrite:
            message = "resume and overwrite exclude one another; drop one of them"
            raise SettingError(message, "resume", "overwrite")
        if self.model == self.compare:
            raise SettingError("compare must differ from model", "compare", "model")
        if self.data == "hub" and TRANSLATION in self.tasks:
            raise SettingError(f"data must be a folder: {TRANSLATION} is read from files", "data")
        _ = self.directions
        for path in (self.output, self.items_file):
            folders = [each for each in (self.model, self.compare) if each and path.exists()]
            check_is_no_input(path, (), [self.data, *folders])

    @property
    def items_file(self) -> Path:
        """o/result.json -> o/result.items.jsonl; o/llama-3.1 -> o/llama-3.1.items.jsonl"""
        assert self.output is not None  # checked when made
        return self.output.with_name(f"{self.output.name.removesuffix('.json')}.items.jsonl")

    @property
    def parts_file(self) -> Path:
        """Beside the items: what is finished, as long as the evaluation is not."""
        return self.items_file.with_name(self.items_file.name.replace(".items.", ".parts."))

    @property
    def directions(self) -> list[tuple[str, str]]:
        """Source and target of the translations."""
        if not self.translation_pairs:
            others = [code for code in self.languages if code != "en"]
            return [pair for code in others for pair in (("en", code), (code, "en"))]
        found = []
        for pair in self.translation_pairs:
            source, dash, target = pair.partition("-")
            if not (source and dash and target):
                message = f"translation_pairs must be such as en-de, got {pair!r}"
                raise SettingError(message, "translation_pairs")
            found.append((source, target))
        return found

    def plain(self) -> dict[str, Any]:
        """What the result says of how it came about."""
        values = {name: getattr(self, name) for name in names_of(EvaluateSettings)}
        del values["check_data"], values["overwrite"], values["resume"]
        return {
            name: str(value) if isinstance(value, Path) else value for name, value in values.items()
        }
