"""`crossalign demo`: its flags, and the demonstration that they describe."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from crossalign.cli.parser import Parser
from crossalign.files.lock import held
from crossalign.settings import (
    SettingError,
    add_flags,
    check_settings,
    from_arguments,
    overwrite_setting,
    required,
    setting,
)

SUMMARY = "Aligns a tiny model, or one of yours, for some minutes and shows what changed."


@dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """The flags of `crossalign demo`."""

    output: Path = required("new directory for the results", metavar="DIR")
    overwrite: bool = overwrite_setting()
    model: str | None = setting(
        None,
        "your causal language model: a directory, a .gguf file or a name; None = a tiny one from "
        "scratch",
        metavar="NAME_OR_DIR",
    )
    pairs: tuple[str, ...] = setting(
        (),
        "for --model, files with their languages: en-de:FILE or en-de:FILE,FILE ...; without: "
        "built-in text in English, German, Spanish and Russian",
        metavar="CODE-CODE:FILE",
    )
    layer: int | None = setting(
        None, "block of --model that is aligned; None = a quarter of them", metavar="K"
    )
    steps: int | None = setting(
        None, "updates of --model; None = 60, some minutes for 300 million weights", lowest=1
    )
    device: str = setting("cpu", "cpu, cuda, ...", metavar="DEVICE")
    seed: int = setting(0, "seed of text, model and training", lowest=0)
    smoke: bool = setting(False, "a few steps, to see that it runs", switch=True)

    def __post_init__(self) -> None:
        check_settings(self)
        if self.model is None:
            for name in ("pairs", "layer", "steps"):
                if getattr(self, name) not in (None, ()):
                    raise SettingError(f"{name} needs a model of yours; add --model", name)


def add_arguments(parser: Parser) -> None:
    add_flags(parser, DemoOptions)


def run(parser: Parser, args: argparse.Namespace, argv: list[str]) -> None:
    with parser.argument_errors():
        options = from_arguments(DemoOptions, args)
    from crossalign.alignment.config import TrainingConfig
    from crossalign.cli.quiet import quiet_transformers
    from crossalign.demo.run import run_demo
    from crossalign.models.loading import choose_device

    with parser.argument_errors():
        TrainingConfig(seed=options.seed)
        choose_device(options.device)
    quiet_transformers()
    with held(options.output):
        run_demo(
            options.output,
            device=options.device,
            seed=options.seed,
            smoke=options.smoke,
            overwrite=options.overwrite,
            model=options.model,
            pairs=options.pairs,
            layer=options.layer,
            steps=options.steps,
        )
