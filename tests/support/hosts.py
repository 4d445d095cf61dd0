"""The libraries that drop-ins belong to, for tests; a test skips where one is not installed."""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from types import ModuleType

import pytest

from benchmarks.drop_ins.torchvision_stand_in import torchvision_stand_in


def load_drop_in(name: str) -> ModuleType:
    """crossalign.integrations.<name>, or a skip that says what is missing."""
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed; pip install 'crossalign[integrations]'")
    with torchvision_stand_in(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what hosts and their dependencies deprecate
        return importlib.import_module(f"crossalign.integrations.{name}")
