"""Guides in the kernels, interpreted: with other options, of other dtypes, and their product."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from crossalign import fused_contrastive_loss, reference
from crossalign.contrastive.problem import dot_rounding
from crossalign.kernels.guides import guide_operand
from tests.support.contrastive.option_cases import (
    Options,
    assert_equals_reference,
    completed,
    make_inputs,
    name_of,
)
from tests.support.contrastive_cases import assert_outcome, fused
from tests.support.pooling_cases import BACKENDS, Run

pytestmark = BACKENDS[1].marks
RUN = Run("triton", "cpu", torch.float32)
EVERY_DIRECTION = ("query_to_key", "key_to_query", "query_to_query", "key_to_key")
COMBINED: list[Options] = [
    {"symmetric": True, "ids": "positive", "negatives": "few", "temperature": "learned"},
    {"directions": EVERY_DIRECTION, "negatives": "owned", "ids": "mask"},
    {"false_negative_margin": 0.1, "negatives": "owned", "hard_negative_weight": 0.7},
    {"symmetric": True, "false_negative_margin": -0.15, "label_smoothing": 0.15},
    {"hardness": 2.5, "debias": 0.1, "weights": True, "reduction": "none"},
    {"normalize": False, "symmetric": True, "share_negatives": False},
]


@pytest.mark.parametrize("options", COMBINED, ids=name_of)
def test_a_guide_with_other_options(options: Options) -> None:
    assert_equals_reference(completed(options | {"guides": "relative"}), RUN)


@pytest.mark.parametrize(
    ("dtype", "of_guide"),
    [
        (torch.float64, torch.float64),
        (torch.float64, torch.float32),
        (torch.float32, torch.bfloat16),
        (torch.float32, torch.float64),
        (torch.float16, torch.float32),
    ],
)
def test_a_guide_of_another_dtype_and_of_several_blocks(
    dtype: torch.dtype, of_guide: torch.dtype
) -> None:
    run = Run("triton", "cpu", dtype)
    inputs = make_inputs({"guides": "absolute", "symmetric": True, "negatives": "few"}, run)
    for name, value in inputs.options.items():
        if name.startswith("guide_") and isinstance(value, torch.Tensor):
            noise = torch.randn(len(value), 47)
            inputs.options[name] = torch.cat([3 * value, noise], 1).to(of_guide)
    upstream = torch.tensor(0.7, dtype=torch.float64)
    assert_outcome(fused(inputs, run.backend, upstream), inputs, upstream)


def test_a_copy_of_the_own_key_is_no_closer_to_the_guide() -> None:
    """The pair's similarity and that of the copy are the same number, formed in two ways."""
    query, key, guide = torch.randn(40, 6), torch.randn(20, 6).repeat(2, 1), torch.randn(40, 300)
    of_key = (guide[:20] + 0.1 * torch.randn(20, 300)).repeat(2, 1)
    given: dict[str, Any] = {"guide_query": guide[:20].repeat(2, 1), "guide_key": of_key}
    loss = fused_contrastive_loss(query, key, backend="triton", symmetric=True, **given)
    truth = reference.contrastive_loss(query.double(), key.double(), symmetric=True, **given)
    torch.testing.assert_close(loss.double(), truth[0], rtol=1e-6, atol=0)


@pytest.mark.parametrize("num_features", [3, 384, 4096])
def test_the_product_of_float16_halves_misses_the_float32_one_by_less_than_a_tie(
    num_features: int,
) -> None:
    x, y = torch.nn.functional.normalize(torch.randn(2, 200, num_features), dim=-1)
    y[100:] = x[100:]
    left, right = (guide_operand(*each, torch.float32) for each in ((x, True), (y, False)))
    assert left.dtype == torch.float16 and left.shape[1] % 64 == 0
    product = (left.double() * right.double()).sum(1) / 2**24
    error = (product - (x.double() * y.double()).sum(1)).abs().max()
    eps = torch.finfo(torch.float32).eps
    assert error < dot_rounding(num_features, eps) + 2 * eps
