"""`crossalign analyze`: its flags, and the analysis they describe."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from crossalign.analysis.parallel_text import check_names
from crossalign.cli.parser import Parser
from crossalign.files.lock import held
from crossalign.files.output import check_is_no_input
from crossalign.pooling.choices import Center, Pooling, PoolTokens
from crossalign.settings import (
    SettingError,
    add_flags,
    check_settings,
    device_setting,
    dtype_setting,
    from_arguments,
    names_of,
    overwrite_setting,
    required,
    setting,
)

SUMMARY = "Shows how near a model's languages are, layer by layer, before and after."
_DATA, _MODEL = "models, data and output", "how the models run"


@dataclass(frozen=True, kw_only=True)
class AnalyzeSettings:
    """The flags of `crossalign analyze`."""

    model: str = required(
        'the causal language model to study ("after" where there is a --compare)',
        group=_DATA,
        metavar="NAME_OR_DIR",
    )
    compare: str | None = setting(
        None,
        'a baseline that --model is compared with ("before"), such as the model it was aligned '
        "from",
        group=_DATA,
        metavar="NAME_OR_DIR",
    )
    pairs: tuple[Path, ...] = required(
        "one TSV or JSON-lines file, or parallel text files, one for each of two languages or "
        "more; .gz of each",
        group=_DATA,
        metavar="FILE",
    )
    output: Path = required(
        "new directory for tables, pictures and report.html", group=_DATA, metavar="DIR"
    )
    overwrite: bool = overwrite_setting(_DATA)
    languages: tuple[str, ...] = setting(
        (),
        "names of the languages, such as en de, in the order of the files; more than two files "
        "need them; without: as a JSON-lines file says, or source and target",
        group=_DATA,
        metavar="CODE",
    )
    limit: int | None = setting(
        None, "draw N lines at random; None = all lines", group=_DATA, lowest=3
    )
    layers: tuple[str, ...] = setting(
        ("all",),
        "layers: 0 = token embedding, k = after block k, -1 = after the final norm; or all",
        metavar="K",
    )
    show_layer: int | None = setting(
        None,
        "layer of the large pictures; None = where --model finds most translations",
        metavar="K",
    )
    pooling: Pooling = setting("mean", "how tokens become a vector")
    pool_tokens: PoolTokens | None = setting(
        None,
        "tokens that count: all, or content = without the tokenizer's special tokens; None = as "
        "--model was aligned, else all",
    )
    center: Center | None = setting(
        None,
        "mean that is subtracted from the sentence vectors: none, batch = of all languages, side = "
        "of each language; None = as --model was aligned, else none",
    )
    max_length: int | None = setting(
        None, "tokens after which a sentence is cut; None = what the model takes", lowest=1
    )
    seed: int = setting(0, "seed of everything that is drawn", lowest=0)
    batch_size: int = setting(64, "sentences run at once", group=_MODEL, lowest=1)
    device: str = device_setting(_MODEL)
    dtype: str = dtype_setting(_MODEL)

    def __post_init__(self) -> None:
        check_settings(self)
        check_names(len(self.pairs), self.languages)
        _ = self.layer_numbers
        check_is_no_input(self.output, self.pairs)

    @property
    def layer_numbers(self) -> list[int] | None:
        """The layers asked for; None: all of them."""
        if self.layers == ("all",):
            return None
        if "all" in self.layers:
            raise SettingError("layers must be either all or numbers", "layers")
        numbers = []
        for text in self.layers:
            try:
                numbers.append(int(text))
            except ValueError:
                message = f"layers must be integers or all, got {text!r}"
                raise SettingError(message, "layers") from None
        return numbers


def add_arguments(parser: Parser) -> None:
    add_flags(parser, AnalyzeSettings)


def run(parser: Parser, args: argparse.Namespace, argv: list[str]) -> None:
    """Checks everything that can be checked before a model is loaded, then analyzes."""
    with parser.argument_errors():
        settings = from_arguments(AnalyzeSettings, args)
    from crossalign.analysis.headline import headline
    from crossalign.analysis.run import AnalysisSettings, LayerError, analyze
    from crossalign.cli.quiet import quiet_transformers
    from crossalign.models.loading import choose_device

    with parser.argument_errors():
        choose_device(settings.device)
    quiet_transformers()
    given = {name: getattr(settings, name) for name in names_of(AnalyzeSettings)}
    del given["output"], given["overwrite"]
    given["layers"] = settings.layer_numbers
    try:
        with held(settings.output):
            result = analyze(
                AnalysisSettings(**given), settings.output, overwrite=settings.overwrite
            )
    except LayerError as error:
        parser.error(str(error))
    print(headline(result))
    num_lines = len(next(iter(result.sentences.values())))
    print(
        f"wrote {settings.output / 'report.html'}: {num_lines} lines in {len(result.sentences)} "
        f"languages, {len(next(iter(result.models.values())))} layers"
    )
