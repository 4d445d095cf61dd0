"""fused_sigmoid_loss equals its reference: loss and gradients; edges, properties."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import pytest
import torch
from torch import Tensor

from crossalign import fused_sigmoid_loss, reference
from crossalign.backends import Backend
from crossalign.contrastive.chunked import torch_logits
from crossalign.contrastive.problem import GradientNeeds
from crossalign.contrastive.sigmoid import torch_passes
from crossalign.contrastive.sigmoid.problem import SigmoidProblem
from tests.support.contrastive.loss_outcomes import upstream_of
from tests.support.counted import LargestAllocation, multiply_adds
from tests.support.pooling_cases import BACKENDS, RUNS, Run
from tests.support.sigmoid_cases import (
    LEAVES,
    SIGMOID_CASES,
    SigmoidCase,
    assert_outcome,
    fused,
    make_inputs,
)

SUBSETS = [subset for size in (1, 2, 3) for subset in combinations(LEAVES, size)]


# Equals reference


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("name", SIGMOID_CASES)
def test_loss_equals_reference(name: str, run: Run) -> None:
    case = SIGMOID_CASES[name]
    inputs, upstream = make_inputs(case, run), upstream_of(case, run)
    assert_outcome(fused(inputs, upstream, backend=run.backend), inputs, upstream)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("needs", SUBSETS, ids="-".join)
def test_any_subset_of_the_inputs_may_need_a_gradient(needs: tuple[str, ...], backend: str) -> None:
    run = Run(backend, "cpu", torch.float32)
    case = SIGMOID_CASES["chunks"]
    inputs, upstream = make_inputs(case, run), upstream_of(case, run)
    assert_outcome(fused(inputs, upstream, needs, backend=backend), inputs, upstream, needs)


@pytest.mark.parametrize("num_pairs", [2, 15, 16, 17, 31, 32, 33])
def test_sizes_around_the_tiles(num_pairs: int) -> None:
    case, run = SigmoidCase(num_pairs, 3), Run("torch", "cpu", torch.float32)
    inputs, upstream = make_inputs(case, run), upstream_of(case, run)
    assert_outcome(fused(inputs, upstream, backend="torch"), inputs, upstream)


def test_a_written_out_example() -> None:
    """Two pairs with similarities 1 and 0: softplus(-(5 - 2)) + softplus(0 - 2) for each row."""
    pairs = torch.eye(2)
    loss = fused_sigmoid_loss(pairs, pairs, temperature=0.2, bias=-2.0)
    expected = torch.tensor([-3.0, -2.0], dtype=torch.float64).exp().log1p().sum()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_small_terms_and_gradients_keep_their_digits(backend: Backend) -> None:
    """A bias of -30: every negative adds 1e-13. Rounding such a logit is 2e-6 of the term."""
    query = torch.zeros(40, 2)
    query[:, 0] = 1
    key = torch.zeros(40, 2)
    key[:, 1] = 1
    bias = torch.tensor(-30.0, requires_grad=True)
    terms = fused_sigmoid_loss(
        query, key, temperature=1.0, bias=bias, reduction="none", backend=backend
    )
    of_negatives = 39 * torch.tensor(-30.0, dtype=torch.float64).exp()
    torch.testing.assert_close(terms.double(), (30 + of_negatives).expand(40), rtol=1e-6, atol=0)
    # With one id for all there are no negatives; with a bias of 30 the terms are as small.
    ids = torch.zeros(40, dtype=torch.long)
    loss = fused_sigmoid_loss(
        query, key, temperature=1.0, bias=-bias, ids=ids, reduction="sum", backend=backend
    )
    expected = 1600 * torch.tensor(-30.0, dtype=torch.float64).exp()
    torch.testing.assert_close(loss.double(), expected, rtol=4e-6, atol=0)
    (grad,) = torch.autograd.grad(loss, bias)
    torch.testing.assert_close(grad.double(), expected, rtol=4e-6, atol=0)


# Edges


@pytest.mark.parametrize("backend", BACKENDS)
def test_strided_inputs_equal_contiguous_ones(backend: Backend) -> None:
    query, key = torch.randn(2, 6, 20)
    views = {
        "transposed": lambda x: x.T.contiguous().T,
        "slice of a wider matrix": lambda x: torch.cat([x, x + 9], 1)[:, :20],
        "every other row": lambda x: x.repeat_interleave(2, 0)[::2],
    }
    expected = fused_sigmoid_loss(query, key, temperature=0.1, bias=-1, backend=backend)
    for name, view in views.items():
        got = fused_sigmoid_loss(view(query), key, temperature=0.1, bias=-1, backend=backend)
        torch.testing.assert_close(got, expected, msg=name)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("normalize", [False, True])
def test_non_finite_embeddings_give_a_non_finite_loss(
    normalize: bool, value: float, backend: Backend
) -> None:
    """A raw key far to the negative side of every query but its own cost nothing."""
    query, key = torch.ones(4, 3), torch.ones(4, 3)
    query[1, 2] = -1.0
    key[1, 2] = value
    options: Any = {"temperature": 0.1, "bias": 0.0, "normalize": normalize}
    assert not fused_sigmoid_loss(query, key, **options, backend=backend).isfinite()
    assert not reference.sigmoid_loss(query, key, **options).isfinite()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_norm_beyond_float32_is_no_zero_vector(backend: Backend) -> None:
    query, key = torch.ones(4, 3), torch.ones(4, 3)
    query[1] = 2e19
    assert not fused_sigmoid_loss(query, key, temperature=1.0, bias=0.0, backend=backend).isfinite()


def test_a_zero_row_has_a_finite_gradient() -> None:
    query, key = torch.randn(4, 3), torch.randn(4, 3)
    query[1] = 0
    query.requires_grad_()
    loss = fused_sigmoid_loss(query, key, temperature=0.1, bias=0.0)
    loss.backward()
    assert torch.isfinite(loss) and query.grad.isfinite().all()


# Properties


@pytest.mark.parametrize("backend", BACKENDS)
def test_two_runs_give_the_same_bits(backend: str) -> None:
    run, case = Run(backend, "cpu", torch.float32), SIGMOID_CASES["chunks"]
    inputs, upstream = make_inputs(case, run), upstream_of(case, run)
    one, other = (fused(inputs, upstream, backend=backend) for _ in range(2))
    assert torch.equal(one.loss, other.loss)
    for name, grad in one.grads.items():
        assert torch.equal(grad, other.grads[name]), name


def test_size_of_the_chunks_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    case, run = SIGMOID_CASES["chunks"], Run("torch", "cpu", torch.float64)
    inputs, upstream = make_inputs(case, run), upstream_of(case, run)
    whole = fused(inputs, upstream)
    monkeypatch.setattr(torch_logits, "CPU_CHUNK_LOGITS", 1)
    for num_rows in (1, 4, case.num_pairs - 1):
        monkeypatch.setattr(torch_logits, "MIN_ROWS", num_rows)
        chunked = fused(inputs, upstream)
        torch.testing.assert_close(chunked.loss, whole.loss, rtol=1e-12, atol=0)
        torch.testing.assert_close(chunked.grads, whole.grads, rtol=1e-10, atol=1e-13)


def test_no_tensor_of_queries_times_keys() -> None:
    query, key, ids = torch.randn(4096, 8), torch.randn(4096, 8), torch.arange(4096) // 2
    scalars = torch.tensor(10.0), torch.tensor(-10.0)
    problem = SigmoidProblem(*scalars, ids, ids, label_offset=0, normalize=True)
    with LargestAllocation() as largest:
        torch_passes.sigmoid_fwd(query, key, problem)
        torch_passes.sigmoid_bwd(query, key, problem, torch.ones(4096), GradientNeeds())
    assert 0 < largest.elements <= torch_logits.CPU_CHUNK_LOGITS < 4096 * 4096 / 3


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize(
    ("needs", "products"), [(("query", "key"), 3), (("query",), 2), (("key", "bias"), 2)]
)
def test_an_input_without_a_gradient_costs_no_product(
    needs: tuple[str, ...], products: int, reduction: str
) -> None:
    """The logits, once more where terms wait for their gradients, and one product for each side
    that needs one."""
    run, case = Run("torch", "cpu", torch.float32), SIGMOID_CASES["chunks"]
    case = case._replace(options=case.options | {"reduction": reduction})
    inputs, upstream = make_inputs(case, run), upstream_of(case, run)
    leaves: dict[str, Any] = {
        name: value.requires_grad_(name in needs) for name, value in inputs.leaves.items()
    }

    def step() -> None:
        loss = fused_sigmoid_loss(**leaves, **inputs.options)
        loss.backward(upstream.to(loss))

    product = case.num_pairs**2 * case.num_features
    assert multiply_adds(step) == product * (products + (reduction == "none"))
    for name, leaf in leaves.items():
        assert (leaf.grad is not None) == (name in needs)


def test_weights_get_their_gradient() -> None:
    query, key = torch.randn(6, 5), torch.randn(6, 5)
    weights = torch.rand(6, requires_grad=True)
    scalars: dict[str, Any] = {"temperature": 0.1, "bias": -1.0}
    loss = fused_sigmoid_loss(query, key, weights=weights, reduction="sum", **scalars)
    terms: Tensor = fused_sigmoid_loss(query, key, reduction="none", **scalars)
    torch.testing.assert_close(torch.autograd.grad(loss, weights)[0], terms)
