"""Exponentials of the next-token loss that are kept in bfloat16: when, and what they give."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from crossalign.models import next_token_loss as lm
from crossalign.models.next_token_loss import language_model_loss


@pytest.fixture(autouse=True)
def _own_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """The block walk, also where liger-kernel is installed."""
    monkeypatch.setattr(lm, "can_fuse", lambda hidden, scale: False)


@pytest.mark.parametrize(
    ("dtype", "options", "limit", "products"),
    [
        (torch.bfloat16, {}, 2**26, 3),
        (torch.bfloat16, {"scale": 0.5}, 2**26, 3),
        (torch.bfloat16, {"softcap": 2.0}, 2**26, 4),
        (torch.bfloat16, {}, 1000, 4),
        (torch.float16, {}, 2**26, 4),
        (torch.float32, {}, 2**26, 4),
    ],
)
def test_products_of_a_step(
    dtype: torch.dtype,
    options: dict[str, Any],
    limit: int,
    products: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lm, "_KEPT_IN_BFLOAT16", limit)
    hidden = torch.randn(2, 9, 8).to(dtype).requires_grad_()
    weight = torch.randn(403, 8).to(dtype).requires_grad_()
    labels = torch.randint(0, 403, (2, 9))
    with FlopCounterMode(display=False) as counter:
        language_model_loss(hidden, weight, labels, **options).backward()
    assert counter.get_total_flops() == products * 2 * 16 * 403 * 8


def test_exponentials_that_are_kept_give_the_same_gradient(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Within the rounding of p; also where the largest logit comes late, so that those of earlier
    blocks are far below it."""
    torch.manual_seed(0)
    hidden, weight = torch.randn(2, 9, 8), torch.randn(403, 8)
    hidden[..., 0] = 4.0
    weight[:, 0] = torch.linspace(-8.0, 8.0, 403)
    tensors = [each.bfloat16().requires_grad_() for each in (hidden, weight)]
    labels = torch.randint(0, 403, (2, 9))
    kept = language_model_loss(tensors[0], tensors[1], labels)
    monkeypatch.setattr(lm, "_KEPT_IN_BFLOAT16", 0)
    again = language_model_loss(tensors[0], tensors[1], labels)
    assert torch.equal(kept, again)
    gradients = (torch.autograd.grad(loss, tensors) for loss in (kept, again))
    for mine, other in zip(*gradients, strict=True):
        scale = float(other.float().abs().max())
        torch.testing.assert_close(mine.float(), other.float(), rtol=0, atol=scale * 2**-7)
