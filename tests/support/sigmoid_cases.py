"""Inputs that the tests of the sigmoid loss share, and what the reference makes of them."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from crossalign import fused_sigmoid_loss, reference
from crossalign.precision import accumulator
from tests.support.contrastive.loss_outcomes import (
    Inputs,
    Outcome,
    assert_equals_reference,
    differentiate,
)
from tests.support.pooling_cases import Run

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


def fused(inputs: Inputs, upstream: Tensor, needs: Any = None, **options: Any) -> Outcome:
    """Loss and the gradients of `needs` (default: of every leaf)."""
    leaves = {name: value.detach() for name, value in inputs.leaves.items()}
    given = inputs.options | options
    return differentiate(
        lambda tensors: (fused_sigmoid_loss(**given | tensors), {}), leaves, upstream, needs
    )


def dense(inputs: Inputs, dtype: torch.dtype, upstream: Tensor, needs: Any = None) -> Outcome:
    """The same by the reference, in this arithmetic."""
    leaves = {name: value.detach().to(dtype) for name, value in inputs.leaves.items()}
    given = inputs.options | {"compute_dtype": dtype}
    return differentiate(
        lambda tensors: (reference.sigmoid_loss(**given | tensors), {}), leaves, upstream, needs
    )


def assert_outcome(got: Outcome, inputs: Inputs, upstream: Tensor, needs: Any = None) -> None:
    """Loss and gradients of `needs` as the reference gives them."""
    assert_equals_reference(got, inputs, lambda given, dtype: dense(given, dtype, upstream, needs))
