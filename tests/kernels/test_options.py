"""The further options in the kernels, interpreted, equal the reference: alone and in pairs."""

from __future__ import annotations

import random

import pytest
import torch

from tests.support.contrastive.option_cases import (
    ALONE,
    Options,
    completed,
    flat,
    make_inputs,
    pairs_of_options,
)
from tests.support.contrastive_cases import Outcome, assert_outcome, fused
from tests.support.pooling_cases import BACKENDS, Run

pytestmark = BACKENDS[1].marks
RUN = Run("triton", "cpu", torch.float32)
FURTHER = (
    *("directions", "false_negative_margin", "hardness", "hardness_on", "label_smoothing"),
    *("debias", "exclude_self", "key_ids"),
)


def name_of(options: Options) -> str:
    return "-".join(f"{name}={value}" for name, value in options.items())


def with_kernel(options: Options) -> bool:
    return "guides" not in options and any(name in options for name in FURTHER)


def assert_equals_reference(options: Options) -> None:
    inputs = make_inputs(options, RUN)
    size = (21,) if options.get("reduction") == "none" else ()
    upstream = torch.rand(size, dtype=torch.float64) * 2 + 0.1
    got = fused(inputs, RUN.backend, upstream)
    negatives = got.grads.get("negatives")
    if negatives is not None and negatives.dim() == 3:
        got = Outcome(got.loss, got.stats, got.grads | {"negatives": negatives.flatten(0, 1)})
    assert_outcome(got, flat(inputs), upstream)


SINGLE = [completed({name: value}) for name, value in ALONE]


@pytest.mark.parametrize("options", list(filter(with_kernel, SINGLE)), ids=name_of)
def test_every_option_alone(options: Options) -> None:
    assert_equals_reference(options)


PAIRS = random.Random(5).sample([pair for pair in pairs_of_options() if with_kernel(pair)], 40)


@pytest.mark.parametrize("options", PAIRS, ids=name_of)
def test_two_options(options: Options) -> None:
    assert_equals_reference(options)
