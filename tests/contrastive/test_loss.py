"""The contrastive loss equals its reference: loss, statistics, every gradient, on both backends."""

from __future__ import annotations

from functools import partial
from itertools import combinations
from typing import Any

import pytest
import torch
from torch import Tensor

from crossalign import fused_contrastive_loss
from tests.support.contrastive.loss_outcomes import upstream_of
from tests.support.contrastive_cases import (
    LOSS_CASES,
    OWN_ONLY,
    POSITIVE,
    RAW,
    SYMMETRIC,
    LossCase,
    assert_outcome,
    fused,
    make_inputs,
)
from tests.support.pooling_cases import BACKENDS, RUNS, Run

CPU = {backend: Run(backend, "cpu", torch.float32) for backend in ("torch", "triton")}
LEAVES = ("query", "key", "negatives", "temperature")
SUBSETS = [subset for size in (1, 2, 3, 4) for subset in combinations(LEAVES, size)]


# Equals reference


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("name", LOSS_CASES)
def test_loss_equals_reference(name: str, run: Run) -> None:
    case = LOSS_CASES[name]
    inputs, upstream = make_inputs(case, run), upstream_of(case, run)
    assert_outcome(fused(inputs, run.backend, upstream), inputs, upstream)


@pytest.mark.parametrize("symmetric", [False, True], ids=["one_way", "symmetric"])
@pytest.mark.parametrize("num_negatives", [None, 1, 31])
@pytest.mark.parametrize("num_pairs", [2, 31, 32, 33])
def test_sizes_around_the_tiles(num_pairs: int, num_negatives: int | None, symmetric: bool) -> None:
    case = LossCase(num_pairs, num_negatives, 3, (), {"symmetric": symmetric})
    inputs, upstream = make_inputs(case, CPU["torch"]), upstream_of(case, CPU["torch"])
    assert_outcome(fused(inputs, "torch", upstream), inputs, upstream)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_reductions_under_any_upstream_gradient(
    reduction: str, weighted: bool, backend: str
) -> None:
    case = LossCase(6, 3, 4, ("weights",) * weighted, SYMMETRIC | {"reduction": reduction})
    inputs, upstream = make_inputs(case, CPU[backend]), upstream_of(case, CPU[backend])
    got = fused(inputs, backend, upstream)
    assert got.loss.shape == ((6,) if reduction == "none" else ())
    assert_outcome(got, inputs, upstream)


@pytest.mark.parametrize("backend", BACKENDS)
def test_reductions_belong_together(backend: str) -> None:
    query, key, weights = torch.randn(5, 4), torch.randn(5, 4), torch.rand(5)
    function = partial(fused_contrastive_loss, query, key, weights=weights, backend=backend)
    terms = function(reduction="none")
    torch.testing.assert_close(function(reduction="sum"), terms.sum())
    torch.testing.assert_close(function(), terms.sum() / weights.sum())
    ones = partial(fused_contrastive_loss, query, key, backend=backend)
    assert torch.equal(ones(), ones(weights=torch.ones(5)))
    torch.testing.assert_close(terms, weights * ones(reduction="none"))
    integers = torch.arange(5)
    assert torch.equal(ones(weights=integers), ones(weights=integers.float()))


def test_symmetric_is_the_mean_of_both_directions() -> None:
    query, key = torch.randn(7, 5), torch.randn(7, 5)
    there, back = fused_contrastive_loss(query, key), fused_contrastive_loss(key, query)
    both = fused_contrastive_loss(query, key, symmetric=True)
    torch.testing.assert_close(both, (there + back) / 2)


# Gradient


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_subset_of_inputs_may_need_a_gradient(backend: str) -> None:
    """A gradient does not depend on which other inputs need one."""
    case = LossCase(5, 4, 3, ("temperature", "negative_owner"), {"hard_negative_weight": 0.5})
    run = CPU[backend]._replace(dtype=torch.float32)
    inputs, upstream = make_inputs(case, run), upstream_of(case, run)
    whole = fused(inputs, backend, upstream)
    for subset in SUBSETS:
        part = fused(inputs, backend, upstream, subset)
        assert set(part.grads) == set(subset)
        for name in subset:
            torch.testing.assert_close(
                part.grads[name], whole.grads[name], rtol=1e-5, atol=1e-7, msg=f"{subset} {name}"
            )
    assert not fused_contrastive_loss(**inputs.leaves, **inputs.options).requires_grad


def loss_of(options: dict[str, Any], names: tuple[str, ...], fixed: dict[str, Tensor]) -> Any:
    def function(*tensors: Tensor) -> Tensor:
        leaves = fixed | dict(zip(names, tensors, strict=True))
        return fused_contrastive_loss(**leaves, **options, backend="torch")

    return function


@pytest.mark.parametrize("subset", SUBSETS, ids="-".join)
def test_gradcheck_of_every_subset(subset: tuple[str, ...]) -> None:
    case = LossCase(4, 3, 3, ("temperature",), SYMMETRIC | {"reduction": "none"})
    gradcheck(case, subset)


@pytest.mark.parametrize(
    "case",
    [
        LossCase(5, 4, 2, ("ids", "negative_ids", "temperature"), SYMMETRIC | POSITIVE),
        LossCase(5, 4, 2, ("ids", "weights"), SYMMETRIC | RAW),
        LossCase(4, 6, 3, ("negative_owner",), OWN_ONLY | {"hard_negative_weight": 0.3}),
        LossCase(4, 6, 3, ("negative_owner", "temperature", "ids"), POSITIVE | OWN_ONLY),
        LossCase(4, None, 3, (), {"temperature": 0.01}),
    ],
)
def test_gradcheck_of_the_options(case: LossCase) -> None:
    gradcheck(case)


def gradcheck(case: LossCase, names: tuple[str, ...] = ()) -> None:
    inputs = make_inputs(case, Run("torch", "cpu", torch.float64))
    names = names or tuple(inputs.leaves)
    tensors = [inputs.leaves[name].requires_grad_() for name in names]
    assert torch.autograd.gradcheck(loss_of(inputs.options, names, inputs.leaves), tensors)


# Edges of the precision


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("gap", [5.0, 15.0, 40.0, 80.0])
@pytest.mark.parametrize("temperature", [1.0, torch.tensor(1.0)], ids=["float", "tensor"])
def test_gradient_is_exact_where_p_tends_to_1(
    temperature: float | Tensor, gap: float, backend: str
) -> None:
    """1 - p and the loss are about exp(-gap) here, below what 1 minus a float32 can hold."""
    query = torch.tensor([[gap, 0.0]], requires_grad=True)
    key, negatives = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    loss = fused_contrastive_loss(
        query, key, negatives, temperature=temperature, normalize=False, backend=backend
    )
    odds = torch.exp(-torch.tensor(gap, dtype=torch.float64))
    (grad,) = torch.autograd.grad(loss, query)
    torch.testing.assert_close(loss.double(), odds.log1p(), rtol=2e-5, atol=0)
    expected = torch.stack([-odds, odds])[None] / (1 + odds)
    torch.testing.assert_close(grad.double(), expected, rtol=2e-5, atol=0)
