"""Inputs that the tests of the contrastive loss share, and what the reference makes of them."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from crossalign import fused_contrastive_loss, reference
from crossalign.contrastive.problem import ContrastiveProblem
from crossalign.precision import accumulator
from tests.support.contrastive.loss_outcomes import (
    Inputs,
    Outcome,
    assert_equals_reference,
    differentiate,
)
from tests.support.pooling_cases import Run

SYMMETRIC = {"symmetric": True}
POSITIVE = {"same_id": "positive"}
OWN_ONLY = {"share_negatives": False}
RAW = {"normalize": False, "temperature": 3.0}
EVERY_TENSOR = ("ids", "negative_ids", "negative_owner", "weights", "temperature")


class LossCase(NamedTuple):
    """Sizes, the tensor options to give (their names), and the plain options."""

    num_pairs: int
    num_negatives: int | None
    num_features: int
    given: tuple[str, ...] = ()
    options: dict[str, Any] = {}  # noqa: RUF012


# The interpreter's tiles are 16 rows by 32 columns by 16 features; it runs two programs, and
# chunks of 64 x 64 in the backward pass. Each case adds something that the others do not reach.
LOSS_CASES = {
    "one_of_everything": LossCase(1, 1, 1, (), RAW | SYMMETRIC),
    # Whole tiles in every dimension: nothing is masked off.
    "whole_tiles": LossCase(16, 16, 16, (), SYMMETRIC),
    "below_the_tiles": LossCase(15, None, 7),
    # One beyond the tiles; a scale of 100 takes the running maximum.
    "beyond_the_tiles": LossCase(17, 16, 17, (), {"temperature": 0.01} | SYMMETRIC),
    # Chunks of 64 + 1 rows and 64 + 64 + 1 columns; three row blocks per program, the last empty.
    "chunks": LossCase(65, 64, 5, ("ids", "negative_ids", "weights"), SYMMETRIC),
    # One row block and three column blocks: two splits of the columns, the last reaching past M.
    "splits": LossCase(9, 70, 19, ("negative_owner",), {"hard_negative_weight": 0.7}),
    "own_negatives": LossCase(
        33, 14, 3, ("negative_owner", "ids"), OWN_ONLY | SYMMETRIC | {"reduction": "sum"}
    ),
    "negatives_of_no_rows": LossCase(5, 0, 4, ("negative_owner", "ids", "negative_ids"), OWN_ONLY),
    "positives": LossCase(
        20, 13, 6, ("ids", "negative_ids"), POSITIVE | SYMMETRIC | {"reduction": "none"}
    ),
    "positives_of_keys_alone": LossCase(18, 5, 6, ("ids",), POSITIVE | RAW | {"reduction": "sum"}),
    "raw": LossCase(12, 4, 8, ("weights",), RAW | SYMMETRIC | {"reduction": "none"}),
    "learned": LossCase(17, 3, 9, ("temperature", "ids"), SYMMETRIC),
    # Both signs of the weight: its sum must not reach the gradient of the temperature.
    "learned_hard": LossCase(
        10, 12, 4, ("temperature", "negative_owner"), {"hard_negative_weight": -1.5}
    ),
    "everything": LossCase(
        19, 34, 6, EVERY_TENSOR, POSITIVE | SYMMETRIC | OWN_ONLY | {"hard_negative_weight": 0.5}
    ),
}


def make_inputs(case: LossCase, run: Run) -> Inputs:
    """Rows of different length; keys near their queries, so that p spreads over (0, 1)."""
    num_pairs, num_negatives, num_features, given, plain = case

    def rows(count: int) -> Tensor:
        return torch.randn(count, num_features) * (0.3 + 2 * torch.rand(count, 1))

    query = rows(num_pairs)
    leaves = {"query": query, "key": 0.5 * query + rows(num_pairs)}
    if num_negatives is not None:
        leaves["negatives"] = rows(num_negatives)
    leaves = {name: value.to(run.device, run.dtype) for name, value in leaves.items()}

    def ids(count: int) -> Tensor:
        # -1 and others that differ from it above bit 32 alone.
        return torch.randint(0, 1 + num_pairs // 3, (count,)) * 2**32 - 1

    options = dict(plain)
    if "ids" in given:
        options["ids"] = ids(num_pairs)
    if "negative_ids" in given:
        options["negative_ids"] = ids(num_negatives or 0)
    if "negative_owner" in given:
        options["negative_owner"] = torch.randint(0, num_pairs, (num_negatives or 0,))
    if "weights" in given:
        options["weights"] = torch.rand(num_pairs) * 3
    options = {k: v.to(run.device) if isinstance(v, Tensor) else v for k, v in options.items()}
    if "temperature" in given:
        temperature = torch.tensor(0.07, dtype=accumulator(run.dtype), device=run.device)
        leaves["temperature"] = temperature
    return Inputs(leaves, options)


def fused(inputs: Inputs, backend: str, upstream: Tensor, needs: Any = None) -> Outcome:
    """Loss, statistics and the gradients of `needs` (default: of every leaf)."""
    leaves = {name: value.detach() for name, value in inputs.leaves.items()}

    def function(leaves: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        options = inputs.options | leaves | {"backend": backend, "return_stats": True}
        loss, stats = fused_contrastive_loss(**options)
        return loss, stats._asdict()

    return differentiate(function, leaves, upstream, needs)


def dense(inputs: Inputs, dtype: torch.dtype, upstream: Tensor, needs: Any = None) -> Outcome:
    """The same by the reference, in this arithmetic."""
    leaves = {name: value.detach().to(dtype) for name, value in inputs.leaves.items()}

    def function(leaves: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        return reference.contrastive_loss(**inputs.options | leaves, compute_dtype=dtype)

    return differentiate(function, leaves, upstream, needs)


def assert_outcome(got: Outcome, inputs: Inputs, upstream: Tensor, needs: Any = None) -> None:
    """Loss, gradients of `needs` and statistics as the reference gives them."""
    assert_equals_reference(got, inputs, lambda given, dtype: dense(given, dtype, upstream, needs))


def make_problem(num_keys: int, dtype: torch.dtype, **options: Any) -> ContrastiveProblem:
    """What the registered ops take, plain where options do not say otherwise."""
    defaults: dict[str, Any] = {
        "scale": torch.tensor(7.0, dtype=accumulator(dtype)),
        "num_keys": num_keys,
        "symmetric": True,
        "bound": 8.0,
    }
    return ContrastiveProblem(**defaults | options)
