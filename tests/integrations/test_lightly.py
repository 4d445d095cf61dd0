"""NTXentLoss against lightly's own, with and without its memory bank."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.hosts import load_drop_in
from tests.support.process_group import run_ranks

ROWS = 6


def views(step: int = 0, rows: slice = slice(None)) -> list[Tensor]:
    generator = torch.Generator().manual_seed(step)
    made = [torch.randn(ROWS, 8, generator=generator) for _ in range(2)]
    return [view[rows].requires_grad_() for view in made]


def run(loss: Any, given: list[Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
    value = loss(*given)
    return value.detach(), torch.autograd.grad(value, given)


def test_equals_the_host_without_a_bank() -> None:
    ours = load_drop_in("lightly").NTXentLoss
    host = ours.__mro__[1]
    assert host.__module__ == "lightly.loss.ntx_ent_loss" and host.__name__ == "NTXentLoss"
    assert inspect.signature(ours) == inspect.signature(host)
    for temperature in (0.1, 0.5, 10, -0.5):
        value, gradients = run(ours(temperature), views())
        expected, theirs = run(host(temperature), views())
        torch.testing.assert_close(value, expected, rtol=2e-6, atol=1e-6)
        torch.testing.assert_close(gradients, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("temperature", [0.2, -0.4])
def test_equals_the_host_with_a_bank_that_goes_round(temperature: float) -> None:
    ours = load_drop_in("lightly").NTXentLoss(temperature, memory_bank_size=(16, 8))
    host = type(ours).__mro__[1](temperature, memory_bank_size=(16, 8))
    host.load_state_dict(ours.state_dict(), strict=False)
    host.memory_bank.bank.copy_(ours.memory_bank.bank)
    for step in range(5):
        value, gradients = run(ours, views(step))
        expected, theirs = run(host, views(step))
        torch.testing.assert_close(value, expected, rtol=2e-6, atol=1e-6)
        torch.testing.assert_close(gradients, theirs, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(ours.memory_bank.bank, host.memory_bank.bank)
    before = ours.memory_bank.bank.clone()
    with torch.no_grad():
        ours(*(view.detach() for view in views(9)))
    assert torch.equal(ours.memory_bank.bank, before)  # an evaluation leaves it as it is


def _loss_of_rank(rank: int) -> Any:
    rows = (slice(0, 4), slice(4, ROWS))[rank]
    return run(load_drop_in("lightly").NTXentLoss(0.3, gather_distributed=True), views(0, rows))


def test_two_ranks_have_the_gradient_of_the_whole_batch() -> None:
    expected, theirs = run(load_drop_in("lightly").NTXentLoss.__mro__[1](0.3), views())
    ranks = run_ranks(_loss_of_rank, 2)
    mean = sum(value for value, _ in ranks) / 2
    torch.testing.assert_close(mean, expected, rtol=2e-6, atol=1e-6)
    for view in range(2):
        rows = torch.cat([gradients[view] for _, gradients in ranks]) / 2
        torch.testing.assert_close(rows, theirs[view], rtol=1e-4, atol=1e-6)
