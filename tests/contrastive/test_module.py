"""ContrastiveLoss: its learned temperature, its options."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from crossalign import ContrastiveLoss, fused_contrastive_loss


def grad_of(loss: Any, leaf: Tensor) -> Tensor:
    return torch.autograd.grad(loss, leaf)[0]


def test_module_learns_its_temperature_up_to_the_cap() -> None:
    module = ContrastiveLoss(0.1, learn_temperature=True, max_logit_scale=20.0)
    assert list(module.state_dict()) == ["logit_scale"]
    assert module.logit_scale.item() == pytest.approx(math.log(10.0))
    query, key = torch.randn(6, 4), torch.randn(6, 4)
    loss = module(query, key)
    torch.testing.assert_close(loss, fused_contrastive_loss(query, key, temperature=0.1))
    loss.backward()
    assert module.logit_scale.grad.abs() > 0
    module.logit_scale.data.fill_(math.log(1e6))
    torch.testing.assert_close(
        module(query, key), fused_contrastive_loss(query, key, temperature=1 / 20.0)
    )


def test_a_temperature_that_is_a_tensor_keeps_its_gradient_in_the_module() -> None:
    """It was turned into a number, and its gradient was lost without a word."""
    query, key = torch.randn(6, 4), torch.randn(6, 4)
    temperature = torch.tensor(0.2, requires_grad=True)
    assert not list(ContrastiveLoss(temperature).parameters())
    expected = grad_of(fused_contrastive_loss(query, key, temperature=temperature), temperature)
    assert torch.equal(grad_of(ContrastiveLoss(temperature)(query, key), temperature), expected)
    module = ContrastiveLoss(torch.nn.Parameter(temperature.detach()))
    assert torch.equal(grad_of(module(query, key), *module.parameters()), expected)
    learned = ContrastiveLoss(torch.nn.Parameter(temperature.detach()), learn_temperature=True)
    assert learned.logit_scale.item() == pytest.approx(math.log(1 / 0.2))
    assert len(list(learned.parameters())) == 1


def test_module_passes_its_options_on() -> None:
    module = ContrastiveLoss(symmetric=True, reduction="sum", return_stats=True)
    query, key, ids = torch.randn(5, 4), torch.randn(5, 4), torch.tensor([0, 0, 1, 2, 3])
    loss, stats = module(query, key, ids=ids)
    expected, expected_stats = fused_contrastive_loss(
        query, key, ids=ids, symmetric=True, reduction="sum", return_stats=True
    )
    assert torch.equal(loss, expected)
    assert stats == expected_stats
