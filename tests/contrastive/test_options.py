"""The further options of the loss equal the reference: alone, in pairs, and in combinations."""

from __future__ import annotations

import pytest
import torch

from tests.support.contrastive.option_cases import (
    ALONE,
    Options,
    completed,
    flat,
    make_inputs,
    pairs_of_options,
    random_options,
)
from tests.support.contrastive_cases import Outcome, assert_outcome, fused
from tests.support.pooling_cases import Run

WIDE = Run("torch", "cpu", torch.float64)
SINGLE = Run("torch", "cpu", torch.float32)


def name_of(options: Options) -> str:
    return "-".join(f"{name}={value}" for name, value in options.items())


def assert_equals_reference(options: Options, run: Run) -> None:
    inputs = make_inputs(options, run)
    size = (21,) if options.get("reduction") == "none" else ()
    upstream = torch.rand(size, dtype=torch.float64) * 2 + 0.1
    got = fused(inputs, run.backend, upstream)
    negatives = got.grads.get("negatives")
    if negatives is not None and negatives.dim() == 3:
        got = Outcome(got.loss, got.stats, got.grads | {"negatives": negatives.flatten(0, 1)})
    assert_outcome(got, flat(inputs), upstream)


@pytest.mark.parametrize("run", [WIDE, SINGLE], ids=["float64", "float32"])
@pytest.mark.parametrize("options", [completed({n: v}) for n, v in ALONE], ids=name_of)
def test_every_option_alone(options: Options, run: Run) -> None:
    assert_equals_reference(options, run)


def test_every_two_options() -> None:
    pairs = pairs_of_options()
    assert len(pairs) > 400
    for options in pairs:
        try:
            assert_equals_reference(options, WIDE)
        except AssertionError as error:
            raise AssertionError(f"{name_of(options)}: {error}") from error


@pytest.mark.parametrize("seed", range(10))
def test_random_combinations(seed: int) -> None:
    for options in random_options(20, seed):
        try:
            assert_equals_reference(options, WIDE)
        except AssertionError as error:
            raise AssertionError(f"{name_of(options)}: {error}") from error
