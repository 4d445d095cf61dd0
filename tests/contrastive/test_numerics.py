"""The contrastive loss in hard arithmetic: zeros, extremes, float16, NaN; what must not change."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from crossalign import fused_contrastive_loss, reference
from tests.support.contrastive.loss_outcomes import Inputs, upstream_of
from tests.support.contrastive_cases import (
    POSITIVE,
    RAW,
    SYMMETRIC,
    LossCase,
    assert_outcome,
    dense,
    fused,
    make_inputs,
)
from tests.support.pooling_cases import BACKENDS, INTERPRETED_DTYPES, RUNS, Run
from tests.support.tolerances import assert_within_rule

EACH_BACKEND = pytest.mark.parametrize("backend", BACKENDS)
ONE = torch.tensor(1.0)
NAN, INF = float("nan"), float("inf")


def on(backend: str, dtype: torch.dtype = torch.float32) -> Run:
    return Run(backend, "cpu", dtype)


# Zeros and extremes


@EACH_BACKEND
@pytest.mark.parametrize("dtype", INTERPRETED_DTYPES)
def test_a_zero_or_short_row_damages_no_other(dtype: torch.dtype, backend: str) -> None:
    """A row of float16 numbers near the smallest took the range of every other row's gradient."""
    case = LossCase(12, 3, 16, (), SYMMETRIC | {"temperature": 0.5})
    for size in (0.0, 1e-5, 1e-3):
        inputs = make_inputs(case, on(backend, dtype))
        inputs.leaves["query"][3] *= size
        inputs.leaves["key"][5] *= size
        inputs.leaves["negatives"][0] *= size
        got = fused(inputs, backend, ONE)
        truth, plain = (dense(inputs, d, ONE) for d in (torch.float64, torch.float32))
        for name, row in (("query", 3), ("key", 5), ("negatives", 0)):
            others = torch.arange(len(inputs.leaves[name])) != row
            error = (got.grads[name].double() - truth.grads[name]).abs().amax(1)[others]
            largest = truth.grads[name].abs().amax(1)[others]
            assert (error <= 8 * max(torch.finfo(dtype).eps, 2e-7) * largest).all(), (name, size)
        assert_within_rule(got.loss, truth.loss, plain.loss.to(got.loss.dtype))


@EACH_BACKEND
@pytest.mark.parametrize("symmetric", [False, True])
def test_all_rows_zero(symmetric: bool, backend: str) -> None:
    zeros = torch.zeros(4, 3, requires_grad=True)
    loss = fused_contrastive_loss(zeros, torch.zeros(4, 3), symmetric=symmetric, backend=backend)
    assert loss.item() == pytest.approx(math.log(4))
    assert not torch.autograd.grad(loss, zeros)[0].any()


@EACH_BACKEND
def test_rows_below_the_floor_of_the_norm(backend: str) -> None:
    """x / 1e-12 there: shorter than a unit vector, and nothing is projected out of the gradient."""
    inputs = make_inputs(LossCase(4, 2, 3), on(backend, torch.float64))
    inputs.leaves["query"][1] *= 1e-13
    inputs.leaves["key"][2] *= 1e-14
    got, truth = fused(inputs, backend, ONE), dense(inputs, torch.float64, ONE)
    for name, grad in truth.grads.items():
        # Where p is near 1, the truth's p - 1 is known to float64's last digit of 1.
        largest = grad.abs().amax(dim=1, keepdim=True).clamp(min=1.0)
        assert ((got.grads[name] - grad).abs() <= 1e-12 * largest).all(), name


@EACH_BACKEND
@pytest.mark.parametrize("dtype", INTERPRETED_DTYPES)
def test_scale_100_with_large_raw_inputs_stays_finite(dtype: torch.dtype, backend: str) -> None:
    case = LossCase(7, 5, 4, ("weights",), SYMMETRIC | RAW | {"temperature": 0.01})
    inputs = make_inputs(case, on(backend, dtype))
    for leaf in inputs.leaves.values():
        leaf *= 30
    got, truth = fused(inputs, backend, ONE), dense(inputs, torch.float64, ONE)
    assert truth.loss > 1e3  # exp of a logit overflows even float64
    torch.testing.assert_close(got.loss.double(), truth.loss, rtol=1e-5, atol=0)
    for name, grad in got.grads.items():
        assert grad.isfinite().all(), name


@EACH_BACKEND
def test_logits_above_the_range_of_exp(backend: str) -> None:
    """A negative near its query at scale 100: exp(98) times a column coefficient of 0 was NaN."""
    inputs = make_inputs(LossCase(4, 4, 6, (), SYMMETRIC | {"temperature": 0.01}), on(backend))
    query = inputs.leaves["query"]
    inputs.leaves["negatives"] = query + 0.05 * torch.randn_like(query)
    assert_outcome(fused(inputs, backend, ONE), inputs, ONE)


@EACH_BACKEND
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("temperature", [0.0251, 0.05])
def test_opposite_keys_under_a_large_upstream_gradient(
    temperature: float, symmetric: bool, backend: str
) -> None:
    """Every logit at its lower bound: coefficients of exp(bound - rest) overflowed float32."""
    leaves = {
        "query": torch.tensor([[1.0, 0.001], [1.0, 0.0]]),
        "key": torch.tensor([[-1.0, 0.0], [-1.0, 0.001]]),
    }
    inputs = Inputs(leaves, {"temperature": temperature, "symmetric": symmetric})
    upstream = torch.tensor(2.0**20)
    got, truth = fused(inputs, backend, upstream), dense(inputs, torch.float64, upstream)
    for name, grad in got.grads.items():
        torch.testing.assert_close(grad.double(), truth.grads[name], rtol=1e-4, atol=20.0)


@EACH_BACKEND
@pytest.mark.parametrize("upstream", [2.0**-24, 2.0**16])
def test_float16_gradients_of_any_scale(upstream: float, backend: str) -> None:
    """Coefficients that float16 cannot hold; the gradients themselves it can."""
    case = LossCase(9, 40, 8, ("temperature",), SYMMETRIC | {"reduction": "sum"})
    inputs = make_inputs(case, on(backend, torch.float16))
    for name in ("query", "key", "negatives"):
        inputs.leaves[name] *= 0.01 if upstream < 1 else 60
    sent = torch.tensor(upstream)
    assert_outcome(fused(inputs, backend, sent), inputs, sent)


@EACH_BACKEND
@pytest.mark.parametrize("name", ["query", "key", "negatives"])
@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("options", [{}, SYMMETRIC, RAW, {"temperature": 0.01}])
def test_non_finite_input_gives_a_non_finite_loss(
    options: dict[str, Any], value: float, name: str, backend: str
) -> None:
    leaves: dict[str, Any] = {
        "query": torch.rand(3, 4),
        "key": torch.rand(3, 4),
        "negatives": torch.rand(2, 4),
    }
    leaves[name][1, 2] = value
    loss = fused_contrastive_loss(**leaves, **options, backend=backend)
    assert not loss.isfinite()
    truth, _ = reference.contrastive_loss(**leaves, **options)
    assert not truth.isfinite()


@EACH_BACKEND
@pytest.mark.parametrize("options", [{}, SYMMETRIC, {"temperature": 0.01}])
def test_a_norm_beyond_float32_is_no_zero_vector(options: dict[str, Any], backend: str) -> None:
    """Squares above 3.4e38: the inverse norm was 0, every logit 0, and the loss log N."""
    for name in ("query", "key", "negatives"):
        sides = ("query", "key", "negatives")
        leaves: dict[str, Any] = {each: torch.rand(3, 4) for each in sides}
        leaves[name][1] = 2e19
        assert not fused_contrastive_loss(**leaves, **options, backend=backend).isfinite()
        truth, _ = reference.contrastive_loss(**leaves, **options, compute_dtype=torch.float32)
        assert not truth.isfinite()
        leaves[name][1] = 5e18  # whose square float32 still holds
        truth, _ = reference.contrastive_loss(**leaves, **options)
        got = fused_contrastive_loss(**leaves, **options, backend=backend)
        torch.testing.assert_close(got.double(), truth, rtol=1e-5, atol=1e-6)


@EACH_BACKEND
def test_an_infinite_own_logit_is_no_perfect_match(backend: str) -> None:
    """Own logits of +inf beside -inf elsewhere made a loss of 0."""
    query, key = torch.tensor([[INF], [1.0]]), torch.tensor([[1.0], [-1.0]])
    loss = fused_contrastive_loss(query, key, normalize=False, backend=backend, reduction="none")
    assert loss[0].isnan()


# What changes nothing


@EACH_BACKEND
def test_bounded_and_running_maximum_agree(backend: str) -> None:
    """A tensor temperature takes the running maximum, the float of the same value does not."""
    for options in (SYMMETRIC, {"hard_negative_weight": -0.7}, POSITIVE | SYMMETRIC):
        case = LossCase(17, 20, 5, ("ids", "negative_ids", "negative_owner"), options)
        inputs = make_inputs(case, on(backend, torch.float64))
        results = []
        for temperature in (0.05, torch.tensor(0.05, dtype=torch.float64)):
            given = inputs._replace(options=inputs.options | {"temperature": temperature})
            results.append(fused(given, backend, ONE))
        torch.testing.assert_close(results[0].loss, results[1].loss, rtol=1e-12, atol=0)
        torch.testing.assert_close(results[0].grads, results[1].grads, rtol=1e-10, atol=1e-12)


@EACH_BACKEND
def test_order_of_the_negatives_does_not_matter(backend: str) -> None:
    case = LossCase(6, 40, 5, ("ids", "negative_ids", "negative_owner"), SYMMETRIC)
    inputs, order = make_inputs(case, on(backend)), torch.randperm(40)
    shuffled = inputs._replace(
        leaves=inputs.leaves | {"negatives": inputs.leaves["negatives"][order]},
        options=inputs.options
        | {name: inputs.options[name][order] for name in ("negative_ids", "negative_owner")},
    )
    one, other = fused(inputs, backend, ONE), fused(shuffled, backend, ONE)
    torch.testing.assert_close(one.loss, other.loss)
    torch.testing.assert_close(one.grads["query"], other.grads["query"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        one.grads["negatives"][order], other.grads["negatives"], rtol=1e-5, atol=1e-6
    )


@EACH_BACKEND
@pytest.mark.parametrize("constant", [50.0, -200.0])
def test_a_constant_on_all_logits_changes_nothing(constant: float, backend: str) -> None:
    """One more coordinate: 1 on one side, the constant on the other."""
    query, key, negatives = torch.randn(6, 5), torch.randn(6, 5), torch.randn(4, 5)

    def widened(x: Tensor, value: float) -> Tensor:
        return torch.cat([x, torch.full((len(x), 1), value)], 1)

    options = RAW | SYMMETRIC | {"backend": backend}
    expected = fused_contrastive_loss(query, key, negatives, **options)
    got = fused_contrastive_loss(
        widened(query, 1.0), widened(key, constant), widened(negatives, constant), **options
    )
    torch.testing.assert_close(got, expected, rtol=2e-5, atol=2e-5)


@EACH_BACKEND
def test_loss_is_never_negative(backend: str) -> None:
    for temperature in (0.01, 0.05, 1.0):
        query = torch.randn(20, 6)
        key = query + 0.01 * torch.randn(20, 6)
        terms = fused_contrastive_loss(
            query, key, temperature=temperature, symmetric=True, reduction="none", backend=backend
        )
        assert (terms >= 0).all()


@pytest.mark.parametrize("run", RUNS)
def test_two_runs_agree_bit_for_bit(run: Run) -> None:
    options = SYMMETRIC | {"hard_negative_weight": 0.3, "reduction": "none"}
    case = LossCase(66, 67, 9, ("temperature", "ids", "weights", "negative_owner"), options)
    inputs, upstream = make_inputs(case, run), upstream_of(case, run)
    one, other = (fused(inputs, run.backend, upstream) for _ in range(2))
    assert torch.equal(one.loss, other.loss) and one.stats == other.stats
    for name, grad in one.grads.items():
        assert torch.equal(grad, other.grads[name]), name


@EACH_BACKEND
def test_autocast_changes_nothing(backend: str) -> None:
    inputs = make_inputs(LossCase(6, 3, 5, ("temperature",), SYMMETRIC), on(backend))
    expected = fused(inputs, backend, ONE)
    with torch.autocast("cpu", torch.bfloat16):
        got = fused(inputs, backend, ONE)
    assert got.loss.dtype == torch.float32 and torch.equal(got.loss, expected.loss)
    assert all(torch.equal(grad, expected.grads[name]) for name, grad in got.grads.items())


@EACH_BACKEND
def test_inference_needs_no_graph(backend: str) -> None:
    query, key = torch.randn(4, 3, requires_grad=True), torch.randn(4, 3)
    expected = fused_contrastive_loss(query, key, backend=backend)
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            loss = fused_contrastive_loss(query, key, backend=backend)
        assert torch.equal(loss, expected.detach()) and not loss.requires_grad
