"""The further options in the kernels, interpreted, equal the reference: one by one and in pairs."""

from __future__ import annotations

import random

import pytest
import torch

from tests.support.contrastive.option_cases import (
    ALONE,
    Options,
    assert_equals_reference,
    completed,
    make_inputs,
    name_of,
    pairs_of_options,
)
from tests.support.contrastive_cases import fused
from tests.support.pooling_cases import BACKENDS, Run

pytestmark = BACKENDS[1].marks
RUN = Run("triton", "cpu", torch.float32)
FURTHER = (
    *("directions", "false_negative_margin", "hardness", "hardness_on", "label_smoothing"),
    *("debias", "exclude_self", "key_ids", "guides"),
)

REPEATED: dict[str, Options] = {
    "everything": {
        "directions": ("query_to_key", "key_to_query", "key_to_key"),
        "false_negative_margin": 0.1,
        "label_smoothing": 0.15,
        "negatives": "owned",
        "ids": "mask",
    },
    "labels": {"symmetric": True, "debias": 0.1, "temperature": "learned"},
    "ids": {"exclude_self": True, "ids": "positive", "hardness": 2.5},
    "guided": {"symmetric": True, "guides": "relative", "negatives": "few"},
}


def with_kernel(options: Options) -> bool:
    return any(name in options for name in FURTHER)


SINGLE = [completed({name: value}) for name, value in ALONE]


@pytest.mark.parametrize("options", [each for each in SINGLE if with_kernel(each)], ids=name_of)
def test_every_option_alone(options: Options) -> None:
    assert_equals_reference(options, RUN)


PAIRS = random.Random(5).sample([pair for pair in pairs_of_options() if with_kernel(pair)], 40)


@pytest.mark.parametrize("options", PAIRS, ids=name_of)
def test_two_options(options: Options) -> None:
    assert_equals_reference(options, RUN)


@pytest.mark.parametrize("name", sorted(REPEATED))
def test_two_runs_agree_bit_for_bit(name: str) -> None:
    inputs = make_inputs(REPEATED[name], RUN)
    first, second = (fused(inputs, RUN.backend, torch.tensor(0.7)) for _ in range(2))
    assert torch.equal(first.loss, second.loss)
    for leaf, gradient in first.grads.items():
        assert torch.equal(gradient, second.grads[leaf]), leaf
