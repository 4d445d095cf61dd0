"""The options of the loss on a GPU, at sizes that cross its tiles; two of them interpreted too."""

from __future__ import annotations

import pytest
import torch

from tests.support.contrastive.option_cases import (
    ALONE,
    Options,
    assert_equals_reference,
    completed,
    name_of,
    random_options,
)
from tests.support.pooling_cases import BACKENDS, Run

pytest.importorskip("triton", reason="needs triton")
# Beyond one tile of 128 x 256 in both dimensions, and one block of features.
NUM_PAIRS, NUM_FEATURES = 300, 72
CASES = [
    *(completed({name: value}) for name, value in ALONE),
    *({"guides": "relative"} | options for options in ({"symmetric": True}, {"negatives": "few"})),
    *random_options(24, seed=11),
]


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("options", CASES, ids=name_of)
def test_options_equal_the_reference_on_a_gpu(options: Options, dtype: torch.dtype) -> None:
    assert_equals_reference(options, Run("triton", "cuda", dtype), NUM_PAIRS, NUM_FEATURES)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("options", CASES[-26:-24], ids=name_of)
def test_two_of_them_interpreted(options: Options, backend: str) -> None:
    assert_equals_reference(options, Run(backend, "cpu", torch.float32), 70, 20)
