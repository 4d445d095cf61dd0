"""The settings of a YAML file, read as the command line would give them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from crossalign.cli.parser import Parser
from crossalign.files.text import DataError, check_is_no_pipe

RECIPES = Path(__file__).parents[1] / "recipes"  # they come with the package
_PREFIX = "recipe:"


def find_settings(name: str) -> Path:
    """The file of a name: "recipe:xglm-564m" is one that comes with the package.

    Raises:
        DataError: there is no such recipe; the message lists those that there are.
    """
    if not name.startswith(_PREFIX):
        return Path(name)
    path = RECIPES / f"{name.removeprefix(_PREFIX)}.yaml"
    known = sorted(each.stem for each in RECIPES.glob("*.yaml"))
    if path.stem not in known or path.parent != RECIPES:
        raise DataError(f"{name}: no such recipe; there are {', '.join(known)}")
    return path


def read_settings(path: Path) -> dict[str, Any]:
    """The mapping of a YAML file, or of a recipe, its keys with "_" for "-".

    Raises:
        DataError: the file cannot be read or is no mapping, or there is no such recipe.
    """
    import yaml

    path = find_settings(str(path))
    try:
        check_is_no_pipe(path)
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
