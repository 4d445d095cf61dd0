"""What the tile kernels are given: the precision of float32 products, whole plans, no rounding."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from crossalign import fused_contrastive_loss
from crossalign.contrastive.problem import ContrastiveGrads, GradientNeeds
from tests.support.contrastive_cases import make_problem
from tests.support.pooling_cases import BACKENDS

operands = pytest.importorskip("crossalign.kernels.operands", reason="needs triton")
tiles = pytest.importorskip("crossalign.kernels.tiles", reason="needs triton")
INTERPRETED = pytest.mark.parametrize("backend", BACKENDS[1:])


@pytest.fixture
def restored_precision() -> Iterator[None]:
    """PyTorch's switches as they were."""
    switches: tuple[Any, ...] = (torch.backends, torch.backends.cuda.matmul)
    before = [switch.fp32_precision for switch in switches]
    yield
    for switch, value in zip(switches, before, strict=True):
        switch.fp32_precision = value


@INTERPRETED
@pytest.mark.usefixtures("restored_precision")
def test_both_switches_of_the_float32_precision_are_followed(backend: str) -> None:
    """The newer one, which transformers 5 sets, made every loss in float32 raise."""
    row = torch.zeros(1)
    assert operands.dot_precision(row) == "ieee"
    torch.set_float32_matmul_precision("high")
    assert operands.dot_precision(row) == "tf32"
    assert operands.dot_precision(row.bfloat16()) == operands.dot_precision(row.double()) == "ieee"
    torch.set_float32_matmul_precision("highest")
    assert operands.dot_precision(row) == "ieee"
    torch.backends.fp32_precision = "tf32"  # type: ignore[attr-defined]
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    assert operands.dot_precision(row) == "ieee"
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    assert operands.dot_precision(row) == "tf32"
    query, key = torch.randn(6, 4), torch.randn(6, 4)
    assert fused_contrastive_loss(query, key, backend=backend).isfinite()


def test_of_equally_short_plans_that_with_the_fewest_live_rows_is_taken() -> None:
    """65,536 pairs on the 132 multiprocessors of an H200: programs that read 16 blocks of queries
    and 8 of candidates at a time, where 128 and 1 are as short and fill L2."""
    hopper = tiles.TILES[90, 2].forward
    plan = tiles.plan_programs(65_536 // hopper.block_n, 65_536 // hopper.block_m, 132, hopper)
    assert plan.blocks_per_group * plan.blocks_per_split == 1024
    assert (plan.groups, plan.splits) == (16, 8)


def gradients(query: Tensor, candidates: Tensor, upstream: Tensor) -> tuple[Tensor, ...]:
    from crossalign.kernels.contrastive_backward import contrastive_bwd
    from crossalign.kernels.contrastive_forward import contrastive_fwd
    from crossalign.kernels.pair_terms import pair_terms_bwd

    problem = make_problem(
        len(query), query.dtype, scale=torch.tensor(2.0), bound=2.0, symmetric=False
    )
    sums = contrastive_fwd(query, candidates, problem, None, False)
    grads: ContrastiveGrads = pair_terms_bwd(upstream, sums)
    return contrastive_bwd(query, candidates, problem, sums, grads, GradientNeeds(scale=False))


@INTERPRETED
def test_the_positive_is_added_in_float32(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a gradient matrix of bfloat16, as a GPU has, in float32 products: the largest entry of
    every row was rounded with the others, an error of 1.7e-3 where all others together make 1e-4.
    """
    from crossalign.kernels import gradient_products

    accumulate = gradient_products.accumulate

    def rounded(total: Tensor, left: Tensor, right: Tensor, is_first: bool) -> None:
        accumulate(total, left.bfloat16().float(), right, is_first)

    monkeypatch.setattr(gradient_products, "accumulate", rounded)
    query, key = torch.randn(96, 16).bfloat16().float(), torch.randn(96, 16).bfloat16().float()
    upstream = torch.rand(96) + 0.5
    got = gradients(query, key, upstream)
    leaves = [x.double().requires_grad_() for x in (query, key)]
    unit = [torch.nn.functional.normalize(x, dim=1) for x in leaves]
    terms = torch.nn.functional.cross_entropy(
        2 * unit[0] @ unit[1].T, torch.arange(96), reduction="none"
    )
    truth = torch.autograd.grad(terms @ upstream.double(), leaves)
    for ours, expected in zip(got, truth, strict=False):
        assert (ours - expected).norm() / expected.norm() < 3e-4
