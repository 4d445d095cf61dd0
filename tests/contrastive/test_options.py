"""The options of the loss equal the reference: one by one, in pairs, and in combinations."""

from __future__ import annotations

import pytest
import torch

from tests.support.contrastive.option_cases import (
    ALONE,
    Options,
    assert_equals_reference,
    completed,
    name_of,
    pairs_of_options,
    random_options,
)
from tests.support.pooling_cases import Run

WIDE = Run("torch", "cpu", torch.float64)
SINGLE = Run("torch", "cpu", torch.float32)


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
