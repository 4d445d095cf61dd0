"""fused_contrastive_loss(group=...) on a GPU: several processes on one, through its kernels.

The gather reads the peers' memory, or stages through gloo as the ring does; results must be right.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from tests.support.built_extension import extension_folder, use_extension
from tests.support.distributed_cases import (
    HARD,
    POSITIVE,
    SYMMETRIC,
    Case,
    Result,
    assert_equals_one_process,
    assert_within_the_rule,
    run_case,
)
from tests.support.process_group import run_ranks

pytestmark = pytest.mark.cuda

EVERYTHING = ("ids", "negatives", "negative_ids", "owner", "weights", "temperature")
CASES = [
    Case((3, 0, 4), None, (), SYMMETRIC, torch.float32),
    Case((150, 70, 0), (60, 0, 0), EVERYTHING, SYMMETRIC | POSITIVE | HARD, torch.float32),
    Case((150, 70, 0), (60, 0, 0), ("negatives", "owner"), SYMMETRIC | HARD, torch.bfloat16),
]


def run_on_gpu(rank: int, gather: str, way: str, folder: Path) -> list[Result]:
    # Several ranks on one GPU: PyTorch allows that on request, and without multicast.
    os.environ["TORCH_SYMM_MEM_ALLOW_OVERLAPPING_DEVICES"] = "1"
    os.environ["TORCH_SYMM_MEM_DISABLE_MULTICAST"] = "1"
    os.environ["CROSSALIGN_GATHER"] = way
    use_extension(folder)
    return [run_case(case, rank, gather, "triton", "cuda") for case in CASES]


@pytest.mark.parametrize(
    ("gather", "way"),
    [("all_gather", "extension"), ("all_gather", "collective"), ("ring", "collective")],
)
def test_ranks_on_one_gpu_equal_one_process(gather: str, way: str) -> None:
    by_rank = run_ranks(run_on_gpu, 3, gather, way, extension_folder(), timeout_s=300)
    for index, case in enumerate(CASES):
        results = [results[index] for results in by_rank]
        if case.dtype == torch.float32:
            assert_equals_one_process(case, results, 1e-5)
        else:
            assert_within_the_rule(case, results)
