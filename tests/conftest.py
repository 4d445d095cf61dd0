"""Seed, NaN-poisoned allocations, the interpreter where no GPU is, the data folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

# Kernels are decorated on their first import, so this must stand before any of them is touched.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what deterministic cuBLAS asks for
# Two pytest workers on two cores: more threads per worker only fight each other.
if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        skip = pytest.mark.skip(reason="needs an NVIDIA GPU")
        for item in items:
            if "cuda" in item.keywords:
                item.add_marker(skip)


@pytest.fixture(autouse=True)
def _seed_and_poison() -> Iterator[None]:
    """Fixed seed; deterministic mode, in which torch.empty holds NaN: an element that a kernel
    leaves unwritten fails its comparison, and an operation that is not repeatable raises."""
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of real parallel text and evaluation sets, if this machine has it."""
    root = Path(os.environ.get("CROSSALIGN_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not root.is_dir():
        pytest.skip(f"no data folder at {root}; set CROSSALIGN_DATA to one")
    return root
