"""An analysis from files to report: read, encode, measure, draw, write."""

from __future__ import annotations

import gc
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
import transformers

from crossalign.analysis.advice import advice
from crossalign.analysis.measurement import AnalysisOptions, LayerMeasurement, measure_model
from crossalign.analysis.parallel_text import read_parallel_text
from crossalign.analysis.report import LAYER_SHOWN
from crossalign.analysis.results import write_results
from crossalign.files.output import atomic_directory, check_output_directory
from crossalign.models.aligned_as import VectorChoices, choices_of
from crossalign.models.loading import (
    choose_device,
    load_config,
    load_model,
    load_without_weights,
)
from crossalign.models.model_files import check_weight_files
from crossalign.pooling.choices import Center, Pooling, PoolTokens
from crossalign.version import __version__

logger = logging.getLogger("crossalign")


# What an analysis writes.
ENTRIES = ("*.csv", "*.png", "analysis.json", "report.html")


@dataclass(frozen=True, kw_only=True)
class AnalysisSettings:
    """What to analyze; the flags of `crossalign analyze` of the same names."""

    model: str
    compare: str | None = None
    pairs: Sequence[Path]
    languages: Sequence[str] = ()
    layers: Sequence[int] | None = None  # None: all
    show_layer: int | None = None  # None: the best of `model`
    pooling: Pooling = "mean"
    pool_tokens: PoolTokens | None = None  # None: as `model` was aligned
    center: Center | None = None  # likewise
    batch_size: int = 64
    max_length: int | None = None
    limit: int | None = None
    seed: int = 0
    device: str = "auto"
    dtype: str = "float32"


class AnalysisResult(NamedTuple):
    """models: "before" and "after" with a baseline, else "model" -> its layers, ascending."""

    sentences: dict[str, list[str]]
    models: dict[str, list[LayerMeasurement]]
    shown_layer: int


class LayerError(ValueError):
    """A layer that a model does not have."""


def analyze(settings: AnalysisSettings, output: Path, *, overwrite: bool = False) -> AnalysisResult:
    """Measures one model, or two to compare, and writes tables, pictures and report.html.

    Everything is in `output` at the end, or nothing.

    Args:
        settings: what to analyze.
        output: directory that is absent or empty.
        overwrite: it may hold the results of an earlier analysis too, which are replaced.

    Raises:
        FileExistsError: output holds something.
        DataError: a file that cannot be used.
        LayerError: a layer that a model does not have, or models of different depth.
        OSError, ValueError: a model that cannot be loaded, no room on the disk.
    """
    check_output_directory(output, overwrite=overwrite, entries=ENTRIES)
    layers, shown = _resolved_layers(settings)
    device = choose_device(settings.device)
    sentences = read_parallel_text(
        settings.pairs, settings.languages, limit=settings.limit, seed=settings.seed
    )
    choices = choices_of(load_config(settings.model), settings.pool_tokens, settings.center)
    options = AnalysisOptions(
        layers=layers,
        pooling=settings.pooling,
        pool_tokens=choices.pool_tokens,
        center=choices.center,
        batch_size=settings.batch_size,
        max_length=settings.max_length,
        seed=settings.seed,
    )
    models = _measured(settings, sentences, options, device, output)
    if shown is None:
        studied = models["after" if "after" in models else "model"]
        headline = "accuracy" if choices.center == "none" else "centered_accuracy"
        shown = max(studied, key=lambda layer: layer.summary()[headline]).layer
    result = AnalysisResult(sentences, models, shown)
    with atomic_directory(output, overwrite=overwrite, entries=ENTRIES) as directory:
        facts = _facts(settings, choices, result, device)
        write_results(directory, sentences, models, shown, facts)
    return result


def _measured(
    settings: AnalysisSettings,
    sentences: Mapping[str, Sequence[str]],
    options: AnalysisOptions,
    device: torch.device,
    output: Path,
) -> dict[str, list[LayerMeasurement]]:
    """One model after the other, so that memory holds one at a time."""
    names = {"model": settings.model}
    if settings.compare is not None:
        names = {"before": settings.compare, "after": settings.model}
    for name in names.values():  # what would come up hours later
        check_weight_files(name)
        load_without_weights(name)
    around = next(path for path in output.absolute().parents if path.exists())
    models = {}
    for role, name in names.items():
        model, tokenizer = load_model(name, dtype=settings.dtype, device=device)
        models[role] = measure_model(
            model, tokenizer, sentences, options, scratch_directory=around, description=role
        )
        said = advice(model, tokenizer, sentences, models[role], options)
        if said:
            logger.warning("%s: %s", shown_path(name), said)
        del model, tokenizer
        gc.collect()  # the next model needs the room
    return models


def _resolved_layers(settings: AnalysisSettings) -> tuple[list[int], int | None]:
    """The layers asked for and the one to show, 0 to L; only from the models' configurations."""
    depth = _depth(settings.model)
    if settings.compare is not None and _depth(settings.compare) != depth:
        raise LayerError(
            f"--model has {depth} blocks and --compare {_depth(settings.compare)}: a comparison "
            "layer by layer needs models of equal depth"
        )

    def resolved(flag: str, layer: int) -> int:
        if not -depth - 1 <= layer <= depth:
            raise LayerError(
                f"argument {flag}: must lie between {-depth - 1} and {depth} for a model of "
                f"{depth} blocks, got {layer}"
            )
        return layer % (depth + 1)

    asked = range(depth + 1) if settings.layers is None else settings.layers
    layers = sorted({resolved("--layers", layer) for layer in asked})
    if settings.show_layer is None:
        return layers, None
    shown = resolved("--show-layer", settings.show_layer)
    if shown not in layers:
        raise LayerError(
            f"argument --show-layer: must be one of the layers analyzed, "
            f"{' '.join(map(str, layers))}, got {settings.show_layer}"
        )
    return layers, shown


def _depth(name: str) -> int:
    return int(load_config(name).get_text_config(decoder=True).num_hidden_layers)


def _facts(
    settings: AnalysisSettings, choices: VectorChoices, result: AnalysisResult, device: torch.device
) -> dict[str, str]:
    """Name -> value, for the end of the report and analysis.json."""
    facts = {"Model studied": shown_path(settings.model)}
    if settings.compare is not None:
        facts = {
            "Before (baseline)": shown_path(settings.compare),
            "After (model studied)": shown_path(settings.model),
        }
    if settings.show_layer is not None:
        shown = "asked for by --show-layer"
    else:
        centered = "" if choices.center == "none" else " in centered vectors"
        shown = f"where the model studied finds most translations{centered}"
    num_lines = len(next(iter(result.sentences.values())))
    drawn = "" if settings.limit is None else f", at most {settings.limit:,} drawn at random"
    cut = (
        "where the model ends"
        if settings.max_length is None
        else f"at {settings.max_length} tokens"
    )
    return facts | {
        "Sentences": f"{num_lines:,} lines in {len(result.sentences)} languages: "
        f"{', '.join(result.sentences)}{drawn}",
        "Files": ", ".join(shown_path(path) for path in settings.pairs),
        "Layers": _listed(result.models),
        LAYER_SHOWN: f"{result.shown_layer}, {shown}",
        "Sentence vectors": f"{settings.pooling} pooling of {choices.pool_tokens} tokens, center: "
        f"{choices.center}, cut {cut}, {settings.dtype} weights",
        "Seed": str(settings.seed),
        "Device": str(device),
        "Software": f"crossalign {__version__}, PyTorch {torch.__version__}, "
        f"transformers {transformers.__version__}",
    }


def _listed(models: Mapping[str, Sequence[LayerMeasurement]]) -> str:
    layers = [layer.layer for layer in next(iter(models.values()))]
    if len(layers) > 2 and layers == list(range(layers[0], layers[-1] + 1)):
        return f"{layers[0]} to {layers[-1]}"
    return ", ".join(map(str, layers))


def shown_path(path: Path | str) -> str:
    """A path as text that a page can hold, whatever bytes its name has."""
    return os.fsencode(path).decode("utf-8", "replace")
