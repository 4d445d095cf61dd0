"""`crossalign analyze`: its flags, and the analysis they describe."""

from __future__ import annotations

import argparse
from pathlib import Path

from crossalign.analysis.parallel_text import check_names
from crossalign.cli.align import quiet_transformers

_LEAST = {"batch_size": 1, "max_length": 1, "limit": 3, "seed": 0}


def add_arguments(analyze: argparse.ArgumentParser) -> None:
    """The flags of the command."""
    analyze.add_argument(
        "--model",
        required=True,
        metavar="NAME_OR_DIR",
        help='the causal language model to study ("after" where there is a --compare)',
    )
    analyze.add_argument(
        "--compare",
        metavar="NAME_OR_DIR",
        help='a baseline that --model is compared with ("before"), such as the model it was '
        "aligned from",
    )
    analyze.add_argument(
        "--pairs",
        nargs="+",
        type=Path,
        required=True,
        metavar="FILE",
        help="one TSV or JSON-lines file, or parallel text files, one for each of two languages or "
        "more; .gz of each",
    )
    analyze.add_argument(
        "--output",
        type=Path,
        required=True,
        metavar="DIR",
        help="new directory for tables, pictures and report.html",
    )
    analyze.add_argument(
        "--languages",
        nargs="+",
        metavar="CODE",
        help="names of the languages, such as en de, in the order of the files; more than two "
        "files need them; None = as a JSON-lines file says, or source and target",
    )
    _add_options(analyze)


def _add_options(analyze: argparse.ArgumentParser) -> None:
    """The flags that are seldom needed."""
    analyze.add_argument(
        "--layers",
        nargs="+",
        type=_layer,
        default="all",
        metavar="K",
        help="layers: 0 = token embedding, k = after block k, -1 = after the final norm; or all",
    )
    analyze.add_argument(
        "--show-layer",
        type=int,
        metavar="K",
        help="layer of the large pictures; None = where --model finds most translations",
    )
    analyze.add_argument(
        "--pooling",
        choices=("mean", "last", "max"),
        default="mean",
        help="how tokens become a vector",
    )
    analyze.add_argument("--batch-size", type=int, default=64, help="sentences run at once")
    analyze.add_argument(
        "--max-length", type=int, metavar="N", help="tokens kept; None = what the model takes"
    )
    analyze.add_argument(
        "--limit", type=int, metavar="N", help="draw N lines at random; None = all lines"
    )
    analyze.add_argument("--seed", type=int, default=0, help="seed of all that is drawn")
    analyze.add_argument("--device", default="auto", help="auto, cpu, cuda, ...")
    analyze.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        default="float32",
        help="in which both models run, whatever their files hold",
    )


def run(args: argparse.Namespace, argv: list[str]) -> None:
    """Checks everything that can be checked before a model is loaded, then analyses."""
    from crossalign.analysis.run import AnalysisSettings, LayerError, analyze
    from crossalign.models.loading import choose_device

    parser: argparse.ArgumentParser = args.parser
    for name, least in _LEAST.items():
        value = getattr(args, name)
        if value is not None and value < least:
            flag = name.replace("_", "-")
            parser.error(f"argument --{flag}: at least {least}, got {value}")
    is_all = args.layers in ("all", ["all"])
    if "all" in args.layers and not is_all:
        parser.error("argument --layers: all stands alone")
    languages = args.languages or ()
    try:
        check_names(len(args.pairs), languages)
        choose_device(args.device)
    except ValueError as error:
        parser.error(str(error))
    quiet_transformers()
    given = vars(args) | {"languages": languages, "layers": None if is_all else args.layers}
    settings = AnalysisSettings(
        **{name: given[name] for name in AnalysisSettings.__dataclass_fields__}
    )
    try:
        result = analyze(settings, args.output)
    except LayerError as error:
        parser.error(str(error))
    num_lines = len(next(iter(result.sentences.values())))
    print(
        f"wrote {args.output / 'report.html'}: {num_lines} lines in {len(result.sentences)} "
        f"languages, {len(next(iter(result.models.values())))} layers"
    )


def _layer(text: str) -> int | str:
    if text == "all":
        return text
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be integers or all, got {text!r}") from None
