"""Exponentials kept for the gradients: one direction in one pass, and both within a budget."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from crossalign import fused_contrastive_loss
from tests.support.contrastive.loss_outcomes import upstream_of
from tests.support.contrastive_cases import (
    LOSS_CASES,
    OWN_ONLY,
    SYMMETRIC,
    LossCase,
    assert_outcome,
    fused,
    make_inputs,
)
from tests.support.counted import multiply_adds
from tests.support.pooling_cases import BACKENDS, Run

pytest.importorskip("triton", reason="needs triton")
INTERPRETED = pytest.mark.parametrize("backend", BACKENDS[1:])

# Three chunks of 16 rows, the last not whole; five blocks of candidates.
ONE_WAY = {
    "plain": LossCase(35, 105, 19),
    "weights_and_ids": LossCase(35, 105, 5, ("ids", "negative_ids", "weights")),
    "owners": LossCase(
        35, 105, 5, ("negative_owner", "ids"), {"hard_negative_weight": 0.7, "reduction": "sum"}
    ),
    "private": LossCase(35, 105, 5, ("negative_owner", "weights"), OWN_ONLY),
}
BOTH_WAYS = {name: LOSS_CASES[name] for name in ("whole_tiles", "chunks", "own_negatives")}
BOTH_WAYS["terms"] = LossCase(35, 105, 19, ("weights",), {"reduction": "none"})


class Calls:
    """What of the passes was called, and how often."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from crossalign.kernels import contrastive_backward, one_pass

        self.names: list[str] = []
        for module, name in (
            (one_pass, "forward_sums"),
            (contrastive_backward, "kept_gradient"),
            (contrastive_backward, "gradient_tiles"),
        ):
            monkeypatch.setattr(module, name, self._recorded(name, getattr(module, name)))

    def _recorded(self, name: str, function: Any) -> Any:
        def call(*arguments: Any) -> Any:
            self.names.append(name)
            return function(*arguments)

        return call


@INTERPRETED
@pytest.mark.parametrize("name", ONE_WAY)
def test_one_direction_takes_one_pass_and_equals_the_reference(
    name: str, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case, run, calls = ONE_WAY[name], Run(backend, "cpu", torch.float32), Calls(monkeypatch)
    inputs, upstream = make_inputs(case, run), upstream_of(case, run)
    assert_outcome(fused(inputs, backend, upstream), inputs, upstream)
    assert calls.names == ["forward_sums"] * 3


@INTERPRETED
@pytest.mark.parametrize("kept_bytes", [0, 2**26])
@pytest.mark.parametrize("name", BOTH_WAYS)
def test_kept_and_recomputed_exponentials_equal_the_reference(
    name: str, kept_bytes: int, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from crossalign.kernels import kept_exponentials

    monkeypatch.setattr(kept_exponentials, "KEPT_BYTES", kept_bytes)
    case, run, calls = BOTH_WAYS[name], Run(backend, "cpu", torch.float32), Calls(monkeypatch)
    inputs, upstream = make_inputs(case, run), upstream_of(case, run)
    assert_outcome(fused(inputs, backend, upstream), inputs, upstream)
    assert set(calls.names) == {"kept_gradient" if kept_bytes else "gradient_tiles"}


@INTERPRETED
@pytest.mark.parametrize("options", [{}, SYMMETRIC])
def test_a_graph_that_is_kept_gives_its_gradients_twice(
    options: dict[str, Any], backend: str
) -> None:
    query, key = (torch.randn(20, 5, requires_grad=True) for _ in "qk")
    loss = fused_contrastive_loss(query, key, backend=backend, **options)
    once = torch.autograd.grad(loss, [query, key], retain_graph=True)
    thrice = torch.autograd.grad(loss, [query, key], torch.tensor(3.0))
    torch.testing.assert_close([3 * gradient for gradient in once], list(thrice))


@INTERPRETED
def test_two_products_per_chunk_and_none_that_nobody_needs(backend: str) -> None:
    """The logits are the kernel's; of the library's products there are two, or one."""
    for needs in (("query", "key"), ("query",), ("key",)):
        given = {
            name: torch.randn(35, 5).requires_grad_(name in needs) for name in ("query", "key")
        }
        negatives = torch.randn(105, 5)

        def step(given: dict[str, Tensor] = given, negatives: Tensor = negatives) -> None:
            fused_contrastive_loss(**given, negatives=negatives, backend=backend).backward()

        width = 8  # five features, padded to whole 16 bytes
        of_query, of_key = (140 * ("query" in needs), 35 * ("key" in needs))
        assert multiply_adds(step) == 35 * width * (of_query + of_key)


@INTERPRETED
def test_rounding_to_bfloat16_leaves_the_promised_digits(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kept exponentials and scaled queries rounded as on a GPU, products in float32: against
    float64 the gradients were off by 8e-5 and 1.1e-4 at 2,048 pairs."""
    from crossalign.kernels import gradient_products, one_pass

    accumulate = gradient_products.accumulate

    def rounded(total: Tensor, left: Tensor, right: Tensor, is_first: bool) -> None:
        accumulate(total, left.bfloat16().float(), right.bfloat16().float(), is_first)

    monkeypatch.setattr(one_pass, "accumulate", rounded)
    query, key = (torch.randn(96, 16).bfloat16().float().requires_grad_() for _ in "qk")
    loss = fused_contrastive_loss(query, key, temperature=0.5, backend=backend)
    got = torch.autograd.grad(loss, [query, key])
    leaves = [x.detach().double().requires_grad_() for x in (query, key)]
    unit = [torch.nn.functional.normalize(x, dim=1) for x in leaves]
    expected = torch.nn.functional.cross_entropy(2 * unit[0] @ unit[1].T, torch.arange(96))
    truth = torch.autograd.grad(expected, leaves)
    for ours, exact in zip(got, truth, strict=True):
        assert (ours - exact).norm() / exact.norm() < 4e-4
