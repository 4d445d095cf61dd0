"""The checks themselves: they pass on what is right, and see what is wrong."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from crossalign import reference
from crossalign.check import loss_checks, other_checks
from crossalign.check.catalog import catalog
from crossalign.check.finding import Finding, Place, assert_same_bits, worst
from crossalign.check.truth import sampled_truth
from crossalign.check.worker import run_check
from tests.support.pooling_cases import needs_interpreter

CPU = Place("torch", "cpu", True)


@pytest.mark.parametrize("symmetric", [False, True])
def test_sampled_truth_is_the_dense_reference(
    symmetric: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("crossalign.check.truth.BLOCK_ROWS", 7)
    query, key = (torch.randn(30, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    temperature = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    weights, sample = torch.rand(30, dtype=torch.float64), torch.tensor([3, 29, 0])
    got = sampled_truth(query, key, weights, 0.1, symmetric, sample)
    options: dict[str, Any] = {"symmetric": symmetric, "weights": weights, "reduction": "sum"}
    loss, _ = reference.contrastive_loss(query, key, temperature=temperature, **options)
    of_query, of_key, of_temperature = torch.autograd.grad(loss, (query, key, temperature))
    expected = (loss.detach(), of_query[sample], of_key[sample], of_temperature)
    torch.testing.assert_close(tuple(got), expected, rtol=1e-10, atol=1e-12)


def test_one_lost_row_among_many_is_seen() -> None:
    truth = torch.randn(5000, 4)
    lost = truth.clone()
    lost[77] = 0
    assert worst({"a": (truth, truth.double())}, torch.float32).error == 0
    finding = worst({"a": (truth, truth), "b": (lost, truth)}, torch.float32)
    assert finding == Finding(1.0, 1e-3, "b, row 77")


def test_a_result_that_is_not_finite_is_infinitely_wrong() -> None:
    truth = torch.randn(3)
    assert worst({"a": (truth * torch.nan, truth)}, torch.bfloat16).error == torch.inf


def test_other_bits_are_counted() -> None:
    one = torch.randn(4)
    assert assert_same_bits([[one], [one.clone()]], "what").error == 0
    assert assert_same_bits([[one], [one + 1e-6], [one]], "what") == Finding(1.0, 0.0, "what")


@pytest.mark.parametrize("name", ["ids", "own negatives", "sigmoid loss", "pooling", "same bits"])
def test_check_passes_on_the_torch_backend(name: str) -> None:
    result = run_check(name, lambda: catalog(CPU)[name](CPU))
    assert result["ok"], result


@pytest.mark.parametrize("name", [pytest.param("dot product", marks=needs_interpreter)])
def test_check_passes_on_interpreted_kernels(name: str) -> None:
    place = Place("triton", "cpu", True)
    result = run_check(name, lambda: catalog(place)[name](place))
    assert result["ok"], result


def _wrong(function: Any, factor: float) -> Any:
    """The function with a loss, or what else it returns first, off by a factor."""

    def changed(*args: Any, **kwargs: Any) -> Any:
        result = function(*args, **kwargs)
        if isinstance(result, tuple):
            return (result[0] * factor, *result[1:])
        return result * factor

    return changed


@pytest.mark.parametrize(
    ("module", "function", "name"),
    [
        (loss_checks, "fused_contrastive_loss", "loss, one way"),
        (loss_checks, "fused_contrastive_loss", "loss, learned temperature"),
        (loss_checks, "fused_contrastive_loss", "positives"),
        (loss_checks, "fused_sigmoid_loss", "sigmoid loss"),
        (other_checks, "masked_mean_pool", "pooling"),
    ],
)
def test_check_sees_a_result_that_is_off_by_a_hundredth(
    module: Any, function: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, function, _wrong(getattr(module, function), 1.01))
    result = run_check(name, lambda: catalog(CPU)[name](CPU))
    assert not result["ok"] and result["error"] > result["limit"], result


def test_an_exception_is_a_finding() -> None:
    def check() -> Finding:
        raise RuntimeError("no such kernel")

    result = run_check("broken", check)
    assert not result["ok"] and result["detail"] == "RuntimeError: no such kernel"
    assert "in check" in result["traceback"]


def test_a_gpu_is_checked_in_every_dtype_and_option() -> None:
    names = set(catalog(Place("triton", "cuda", False)))
    assert {"captured graph", "three programs", "mixed product", "loss, 4,096 features"} <= names
    for option in loss_checks.OPTIONS:
        assert {option, f"{option}, float32"} <= names
    assert {"loss, float16", "loss, float32", "same bits"} <= names
