"""How a model's sentence vectors were made when it was aligned, kept in its configuration.

`config.json` then has `"crossalign": {"pool_tokens": "content", "center": "batch"}`; a directory
that holds adapters only has no such file, so the settings of the run in it tell.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from crossalign.pooling.choices import Center, PoolTokens

_KEY = "crossalign"
_RUN_SETTINGS = "config.yaml"


class VectorChoices(NamedTuple):
    """Which tokens count, and which mean is subtracted. The defaults are the paper's."""

    pool_tokens: PoolTokens = "all"
    center: Center = "none"


def record_choices(model: Any, choices: VectorChoices) -> None:
    """Into the model's configuration, which is saved and loaded with it."""
    setattr(model.config, _KEY, choices._asdict())


def choices_of(
    model_or_config: Any, pool_tokens: PoolTokens | None = None, center: Center | None = None
) -> VectorChoices:
    """The given choices, and in place of None those the model was aligned with, if it was."""
    config = getattr(model_or_config, "config", model_or_config)
    recorded = getattr(config, _KEY, None) or {}
    default = VectorChoices(**{k: v for k, v in recorded.items() if k in VectorChoices._fields})
    return VectorChoices(pool_tokens or default.pool_tokens, center or default.center)


def record_choices_of_adapters(config: Any, directory: Path) -> None:
    """From the settings of the run that wrote adapters into a directory, if one did."""
    path = directory / _RUN_SETTINGS
    if not path.is_file():
        return
    import yaml

    settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    if isinstance(settings, dict):
        names = VectorChoices._fields
        setattr(config, _KEY, {name: settings[name] for name in names if name in settings})
