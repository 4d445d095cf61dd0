"""Importing the library that a drop-in belongs to."""

from __future__ import annotations

import importlib
from types import ModuleType


def import_host(package: str, *modules: str) -> ModuleType:
    """The first of the modules that exists; they moved between versions of the library.

    package: what pip calls the library.

    Raises:
        ModuleNotFoundError: the library is not installed, or a package that it needs itself.
    """
    missing: ModuleNotFoundError | None = None
    for module in modules:
        try:
            return importlib.import_module(module)
        except ModuleNotFoundError as error:
            if not f"{module}.".startswith(f"{error.name}."):
                raise
            missing = error
    raise ModuleNotFoundError(
        f"crossalign.integrations: {package} must be installed, got no module {modules[0]}; run "
        "pip install 'crossalign[integrations]'",
        name=modules[0],
    ) from missing
