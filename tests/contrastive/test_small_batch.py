"""Small batches take all logits at once; that equals the chunked passes and the reference."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from crossalign import fused_contrastive_loss, reference
from crossalign.contrastive import small_batch
from crossalign.contrastive.chunked import torch_logits
from tests.support.contrastive_cases import RAW, SYMMETRIC, LossCase, make_inputs
from tests.support.pooling_cases import Run
from tests.support.tolerances import assert_within_rule

CASES = {
    "one_way": LossCase(7, None, 5),
    "symmetric": LossCase(6, 3, 4, (), SYMMETRIC),
    "sum": LossCase(5, 2, 3, (), {"reduction": "sum"}),
    "raw": LossCase(8, 4, 6, (), RAW | SYMMETRIC),
    "sharp": LossCase(9, 2, 4, (), {"temperature": 0.01} | SYMMETRIC),
    "learned": LossCase(6, 2, 4, ("temperature",), SYMMETRIC),
    "learned_one_way": LossCase(6, None, 4, ("temperature",)),
    "one_pair": LossCase(1, 3, 4),
}


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each call of the loss went all at once."""
    calls: list[bool] = []
    whole = small_batch.small_batch_loss

    def watched(arguments: Any) -> Tensor | None:
        loss = whole(arguments)
        calls.append(loss is not None)
        return loss

    monkeypatch.setattr("crossalign.contrastive.one_process.small_batch_loss", watched)
    return calls


def outcome(leaves: dict[str, Tensor], options: dict[str, Any]) -> list[Tensor]:
    """The loss and the gradient of every leaf, under an upstream gradient that is not 1."""
    fresh = {name: leaf.detach().requires_grad_() for name, leaf in leaves.items()}
    loss = fused_contrastive_loss(**fresh, **options)
    return [loss.detach(), *torch.autograd.grad(1.7 * loss, list(fresh.values()))]


def expected(
    leaves: dict[str, Tensor], options: dict[str, Any], dtype: torch.dtype
) -> list[Tensor]:
    fresh: dict[str, Any] = {
        name: leaf.detach().to(dtype).requires_grad_() for name, leaf in leaves.items()
    }
    loss, _ = reference.contrastive_loss(**fresh, **options, compute_dtype=dtype)
    return [loss.detach(), *torch.autograd.grad(1.7 * loss, list(fresh.values()))]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", CASES)
def test_equals_the_reference(name: str, dtype: torch.dtype, taken: list[bool]) -> None:
    leaves, options = make_inputs(CASES[name], Run("torch", "cpu", dtype))
    got = outcome(leaves, options)
    assert taken == [True]
    truth = expected(leaves, options, torch.float64)
    if dtype == torch.float64:
        torch.testing.assert_close(got, truth, rtol=1e-9, atol=1e-12)
        return
    plain = expected(leaves, options, torch.float32)
    for ours, exact, other in zip(got, truth, plain, strict=True):
        # Four roundings of the largest element: projections cancel.
        slack = 4 * torch.finfo(torch.float32).eps * exact.abs().max()
        assert_within_rule(ours, exact, [other.to(ours.dtype), exact + slack])


@pytest.mark.parametrize("name", CASES)
def test_equals_the_chunked_passes(
    name: str, taken: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    leaves, options = make_inputs(CASES[name], Run("torch", "cpu", torch.float64))
    at_once = outcome(leaves, options)
    monkeypatch.setattr(torch_logits, "CPU_CHUNK_LOGITS", 1)
    in_chunks = outcome(leaves, options)
    assert taken == [True, False]
    torch.testing.assert_close(at_once, in_chunks, rtol=1e-10, atol=1e-13)


def test_a_certain_row_keeps_its_digits(taken: list[bool]) -> None:
    """Its loss is log(1 + (N - 1) e^-40), which 1 - p in float32 would make 0."""
    query = torch.eye(4)
    leaf = query.clone().requires_grad_()
    loss = fused_contrastive_loss(leaf, query, temperature=1 / 40.0)
    exact = 3 * torch.exp(torch.tensor(-40.0, dtype=torch.float64))
    torch.testing.assert_close(loss.detach().double(), exact, rtol=1e-5, atol=0)
    (grad,) = torch.autograd.grad(loss, leaf)
    assert taken == [True]
    assert bool((grad[0, 1:] > 0).all())


def test_a_lost_row_keeps_its_digits(taken: list[bool]) -> None:
    """Each row's own key is at a right angle, the other's is the row: l = log(1 + e^23)."""
    query = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    key = torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=torch.float64)
    loss = fused_contrastive_loss(query, key, temperature=1 / 23.0)
    exact = 23 + torch.log1p(torch.exp(torch.tensor(-23.0, dtype=torch.float64)))
    torch.testing.assert_close(loss, exact, rtol=1e-13, atol=0)
    assert taken == [True]


def test_zero_rows_have_the_gradient_of_a_constant_norm(taken: list[bool]) -> None:
    query, key = torch.randn(4, 3), torch.randn(4, 3)
    query[1] = 0
    key[2] = 0
    leaves = {"query": query, "key": key}
    got, truth = outcome(leaves, {}), expected(leaves, {}, torch.float64)
    assert taken == [True]
    torch.testing.assert_close([x.double() for x in got], truth, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("needs", ["query", "key", "negatives", "temperature"])
def test_one_gradient_costs_only_its_products(needs: str, taken: list[bool]) -> None:
    leaves, options = make_inputs(
        LossCase(6, 3, 4, ("temperature",)), Run("torch", "cpu", torch.float32)
    )
    whole = dict(zip(leaves, outcome(leaves, options)[1:], strict=True))
    fresh = {name: leaf.detach().clone() for name, leaf in leaves.items()}
    fresh[needs].requires_grad_()
    loss = fused_contrastive_loss(**fresh, **options)
    (grad,) = torch.autograd.grad(1.7 * loss, fresh[needs])
    assert taken == [True, True]
    assert torch.equal(grad, whole[needs])


def test_the_same_bits_twice_and_without_a_gradient(taken: list[bool]) -> None:
    query, key = torch.randn(9, 5), torch.randn(9, 5)
    leaves = {"query": query, "key": key}
    first, second = outcome(leaves, SYMMETRIC), outcome(leaves, SYMMETRIC)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    with torch.no_grad():
        assert torch.equal(fused_contrastive_loss(query, key, symmetric=True), first[0])
    assert taken == [True] * 3


def test_backward_twice_through_a_retained_graph() -> None:
    query, key = torch.randn(4, 3, requires_grad=True), torch.randn(4, 3)
    loss = fused_contrastive_loss(query, key)
    loss.backward(retain_graph=True)
    assert query.grad is not None
    once = query.grad.clone()
    loss.backward()
    torch.testing.assert_close(query.grad, 2 * once, rtol=0, atol=0)


@pytest.mark.parametrize("of", ["query", "upstream"])
def test_differentiating_twice_is_refused(of: str) -> None:
    query, key = torch.randn(4, 3, requires_grad=True), torch.randn(4, 3)
    upstream = torch.ones((), requires_grad=True)
    loss = fused_contrastive_loss(query, key)
    (grad,) = torch.autograd.grad(loss, query, upstream, create_graph=True)
    with pytest.raises(RuntimeError, match="crossalign contrastive loss cannot be differentiated"):
        torch.autograd.grad(grad.sum(), query if of == "query" else upstream)


@pytest.mark.parametrize(
    "options",
    [
        {"ids": torch.arange(4)},
        {"weights": torch.ones(4)},
        {"label_smoothing": 0.1},
        {"false_negative_margin": 0.1},
        {"reduction": "none"},
        {"return_stats": True},
        {"debias": torch.full((4,), 0.1)},
    ],
    ids=lambda options: next(iter(options)),
)
def test_options_take_the_passes_that_know_them(options: dict[str, Any], taken: list[bool]) -> None:
    fused_contrastive_loss(torch.randn(4, 3), torch.randn(4, 3), **options)
    assert taken == [False]


def test_large_and_infinite_batches_take_the_chunked_passes(
    taken: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    query = torch.randn(4, 3)
    monkeypatch.setattr(torch_logits, "CPU_CHUNK_LOGITS", 15)
    fused_contrastive_loss(query, query)
    fused_contrastive_loss(query[:3], query[:3])
    query[0, 0] = torch.inf
    fused_contrastive_loss(query[:3], query[:3], normalize=False)
    assert taken == [False, True, False]
