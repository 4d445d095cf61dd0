"""Inputs that the tests of the sigmoid loss share, and what the reference makes of them."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from crossalign import fused_sigmoid_loss, reference
from crossalign.precision import accumulator
from tests.support.pooling_cases import Run
from tests.support.tolerances import assert_within_rule

LEAVES = ("query", "key", "temperature", "bias")


class SigmoidCase(NamedTuple):
    """Sizes, the tensor options to give (their names), and the plain options."""

    num_pairs: int
    num_features: int
    given: tuple[str, ...] = ()
    options: dict[str, Any] = {}  # noqa: RUF012


# The interpreter's tiles are 16 rows by 32 keys by 16 features; it runs two programs, and chunks of
# 64 x 64 in the backward pass.
SIGMOID_CASES = {
    "one_of_everything": SigmoidCase(1, 1, ("bias",), {"normalize": False}),
    "whole_tiles": SigmoidCase(32, 16, (), {"reduction": "sum"}),
    "below_the_tiles": SigmoidCase(15, 7, ("temperature", "bias")),
    "beyond_the_tiles": SigmoidCase(33, 17, ("ids",)),
    # Chunks of 64 + 1 rows and keys; two splits of the keys.
    "chunks": SigmoidCase(65, 5, ("ids", "weights", "temperature", "bias")),
    # SigLIP's start: a negative's term is 5e-5, which 1 + exp(z) would round off.
    "start": SigmoidCase(40, 8, ("temperature", "bias"), {"bias": -10.0, "temperature": 0.1}),
    # Logits in the hundreds, of both signs.
    "raw": SigmoidCase(12, 8, ("bias",), {"normalize": False, "temperature": 0.05}),
    "terms": SigmoidCase(18, 6, ("ids", "weights", "bias"), {"reduction": "none"}),
}


class Inputs(NamedTuple):
    """Tensors that may get a gradient, and every other argument."""

    leaves: dict[str, Tensor]
    options: dict[str, Any]


def make_inputs(case: SigmoidCase, run: Run) -> Inputs:
    """Rows of different length, keys near their queries; scalars as numbers or as tensors."""
    num_pairs, num_features, given, plain = case

    def rows() -> Tensor:
        return torch.randn(num_pairs, num_features) * (0.3 + 2 * torch.rand(num_pairs, 1))

    query = rows()
    leaves = {"query": query, "key": 0.5 * query + rows()}
    leaves = {name: value.to(run.device, run.dtype) for name, value in leaves.items()}
    options = {"temperature": 0.2, "bias": -1.5} | plain
    for name in ("temperature", "bias"):
        if name in given:
            wide = accumulator(run.dtype)
            leaves[name] = torch.tensor(options.pop(name), dtype=wide, device=run.device)
    if "ids" in given:
        # -1 and others that differ from it above bit 32 only.
        ids = torch.randint(0, 1 + num_pairs // 3, (num_pairs,)) * 2**32 - 1
        options["ids"] = ids.to(run.device)
    if "weights" in given:
        options["weights"] = (torch.rand(num_pairs) * 3).to(run.device)
    return Inputs(leaves, options)


class Outcome(NamedTuple):
    loss: Tensor
    grads: dict[str, Tensor]


def fused(inputs: Inputs, upstream: Tensor, needs: Any = None, **options: Any) -> Outcome:
    """Loss and the gradients of `needs` (default: of every leaf)."""
    leaves = {name: value.detach() for name, value in inputs.leaves.items()}
    return _differentiate(fused_sigmoid_loss, leaves, inputs.options | options, upstream, needs)


def dense(inputs: Inputs, dtype: torch.dtype, upstream: Tensor, needs: Any = None) -> Outcome:
    """The same by the reference, in this arithmetic."""
    leaves = {name: value.detach().to(dtype) for name, value in inputs.leaves.items()}
    options = inputs.options | {"compute_dtype": dtype}
    return _differentiate(reference.sigmoid_loss, leaves, options, upstream, needs)


def _differentiate(
    function: Any, leaves: dict[str, Tensor], options: dict[str, Any], upstream: Tensor, needs: Any
) -> Outcome:
    names = tuple(leaves if needs is None else needs)
    for name in names:
        leaves[name].requires_grad_()
    loss = function(**leaves, **options)
    sent = upstream.to(loss).expand(loss.shape)
    grads = torch.autograd.grad(loss, [leaves[name] for name in names], sent)
    return Outcome(loss.detach(), dict(zip(names, grads, strict=True)))


def upstream_of(case: SigmoidCase, run: Run) -> Tensor:
    """A different gradient for every element of the loss, and none of them 1."""
    size = (case.num_pairs,) if case.options.get("reduction") == "none" else ()
    return (torch.rand(size, dtype=torch.float64) * 2 + 0.1).to(run.device)


def assert_outcome(got: Outcome, inputs: Inputs, upstream: Tensor, needs: Any = None) -> None:
    """Everything within the rule; in float64, where the truth is no more exact, within 1e-9."""
    dtype = inputs.leaves["query"].dtype
    truth = dense(inputs, torch.float64, upstream, needs)
    assert got.loss.dtype == accumulator(dtype)
    for name, grad in got.grads.items():
        assert grad.dtype == inputs.leaves[name].dtype, name
    if dtype == torch.float64:
        torch.testing.assert_close(got.loss, truth.loss, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(got.grads, truth.grads, rtol=1e-9, atol=1e-10)
        return
    plains = [dense(inputs, torch.float32, upstream, needs)]
    # The truth of inputs that the roundings of a float32 pass cannot tell from these.
    plains += [dense(_rounded(inputs), torch.float64, upstream, needs) for _ in range(3)]
    assert_within_rule(got.loss, truth.loss, [plain.loss for plain in plains], "loss")
    for name, grad in got.grads.items():
        of_truth = truth.grads[name]
        of_plain = [plain.grads[name].to(grad.dtype) for plain in plains]
        assert_within_rule(grad, of_truth, of_plain, f"gradient of {name}")


def _rounded(inputs: Inputs) -> Inputs:
    """Every element of the leaves off by about three ulp of float32."""
    eps = 3 * torch.finfo(torch.float32).eps
    leaves = {
        name: value.double() * (1 + eps * torch.randn_like(value, dtype=torch.float64))
        for name, value in inputs.leaves.items()
    }
    return inputs._replace(leaves=leaves)
