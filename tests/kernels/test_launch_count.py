"""Small batches are bound by launches: a step takes no more than twelve."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from crossalign import fused_contrastive_loss
from tests.support.pooling_cases import BACKENDS

pytest.importorskip("triton", reason="needs triton")
INTERPRETED = pytest.mark.parametrize("backend", BACKENDS[1:])


def step_launches(monkeypatch: pytest.MonkeyPatch, **options: Any) -> list[str]:
    """Of one forward and backward pass whose workspace holds all rows."""
    from crossalign.kernels import one_pass
    from tests.support.kernels.counted_launches import launches_of

    monkeypatch.setattr(one_pass, "CHUNK_BYTES", 2**20)
    query, key = (torch.randn(33, 16, requires_grad=True) for _ in range(2))

    def step() -> None:
        fused_contrastive_loss(query, key, backend="triton", **options).backward()

    return launches_of(step, monkeypatch)


@INTERPRETED
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("symmetric", [False, True])
def test_a_step_takes_twelve_launches_at_most(
    symmetric: bool, reduction: str, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    launches = step_launches(monkeypatch, symmetric=symmetric, reduction=reduction)
    assert len(launches) <= 12, "\n".join(launches)
