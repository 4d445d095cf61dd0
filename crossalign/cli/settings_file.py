"""The settings of a YAML file, read as the command line would give them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from crossalign.cli.parser import Parser
from crossalign.files.text import DataError


def read_settings(path: Path) -> dict[str, Any]:
    """The mapping of a YAML file, its keys with "_" for "-".

    Raises:
        DataError: the file cannot be read or is no mapping.
    """
    import yaml

    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(settings, dict):
        raise DataError(f"{path}: must map settings to values, got {type(settings).__name__}")
    return {str(key).replace("-", "_"): value for key, value in settings.items()}


def as_flags(parser: Parser, settings: Mapping[str, Any], known: Collection[str]) -> list[str]:
    """Flags that give these settings, so that argparse checks them like any others."""
    unknown = sorted(settings.keys() - set(known))
    if unknown:
        parser.error(
            f"unknown in the configuration file: {', '.join(unknown)}; known: {', '.join(known)}"
        )
    flags = []
    for name, value in settings.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            flags.append(f"--{flag}" if value else f"--no-{flag}")
        elif isinstance(value, list):
            flags += [f"--{flag}", *map(str, value)] if value else []
        elif value is not None:
            flags.append(f"--{flag}={value}")
    return flags
