"""Importing the library that a drop-in belongs to, and the constructor of a drop-in."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any


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


def checked_constructor(
    host_init: Callable[..., None], check: Callable[[Any], object]
) -> Callable[..., None]:
    """The constructor of the host, with its signature; check(loss) raises what cannot be done."""

    @functools.wraps(host_init)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        host_init(self, *args, **kwargs)
        check(self)

    return init
