"""What a loss gives and how the tests of both losses compare it with the reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from crossalign.precision import accumulator
from tests.support.pooling_cases import Run
from tests.support.tolerances import assert_within_rule


class Inputs(NamedTuple):
    """Tensors that may get a gradient, and every other argument."""

    leaves: dict[str, Tensor]
    options: dict[str, Any]


class Outcome(NamedTuple):
    loss: Tensor
    grads: dict[str, Tensor]
    stats: dict[str, Tensor] = {}  # noqa: RUF012


def differentiate(
    function: Callable[[dict[str, Tensor]], tuple[Tensor, dict[str, Tensor]]],
    leaves: dict[str, Tensor],
    upstream: Tensor,
    needs: Any,
) -> Outcome:
    """Loss and statistics of function(leaves), and the gradients of `needs` (None: all leaves)."""
    names = tuple(leaves if needs is None else needs)
    for name in names:
        leaves[name].requires_grad_()
    loss, stats = function(leaves)
    sent = upstream.to(loss).expand(loss.shape)
    grads = torch.autograd.grad(loss, [leaves[name] for name in names], sent)
    return Outcome(loss.detach(), dict(zip(names, grads, strict=True)), stats)


def upstream_of(case: Any, run: Run) -> Tensor:
    """A different gradient for every element of the loss, and none of them 1."""
    size = (case.num_pairs,) if case.options.get("reduction") == "none" else ()
    return (torch.rand(size, dtype=torch.float64) * 2 + 0.1).to(run.device)


def assert_equals_reference(
    got: Outcome, inputs: Inputs, dense: Callable[[Inputs, torch.dtype], Outcome]
) -> None:
    """Everything within the rule; in float64, where the truth is no more exact, within 1e-9.

    dense: the outcome of the reference for these inputs, in this arithmetic.
    """
    dtype = inputs.leaves["query"].dtype
    truth = dense(inputs, torch.float64)
    assert got.loss.dtype == accumulator(dtype)
    for name, grad in got.grads.items():
        assert grad.dtype == inputs.leaves[name].dtype, name
    if dtype == torch.float64:
        torch.testing.assert_close(got.loss, truth.loss, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(got.grads, truth.grads, rtol=1e-9, atol=1e-10)
    else:
        plains = [dense(inputs, torch.float32)]
        # The truth of inputs that the roundings of a float32 pass cannot tell from these. Eight,
        # since all of a row's elements may share one error, of which three draws can be tiny.
        plains += [dense(_rounded(inputs), torch.float64) for _ in range(8)]
        assert_within_rule(got.loss, truth.loss, [plain.loss for plain in plains], "loss")
        for name, grad in got.grads.items():
            of_truth = truth.grads[name]
            of_plain = [plain.grads[name].to(grad.dtype) for plain in plains]
            # Float64 forms p - 1 to 1e-16 of its largest; where p tends to 1 ours is more exact.
            largest = of_truth.abs().max() if of_truth.numel() else 0
            of_plain.append(of_truth + 1e-14 * largest)
            assert_within_rule(grad, of_truth, of_plain, f"gradient of {name}")
    expected = {name: value.float() for name, value in truth.stats.items()}
    torch.testing.assert_close(got.stats, expected, rtol=1e-5, atol=1e-6)


def _rounded(inputs: Inputs) -> Inputs:
    """Every element of the leaves off by about three ulp of float32."""
    eps = 3 * torch.finfo(torch.float32).eps
    leaves = {
        name: value.double() * (1 + eps * torch.randn_like(value, dtype=torch.float64))
        for name, value in inputs.leaves.items()
    }
    return inputs._replace(leaves=leaves)
