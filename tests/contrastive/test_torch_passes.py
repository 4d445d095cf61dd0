"""The chunked PyTorch passes: chunks of any size agree, memory is bounded, the helpers work."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from crossalign import fused_contrastive_loss
from crossalign.contrastive.chunked import torch_logits, torch_passes
from crossalign.contrastive.chunked.chunk import label_view
from crossalign.contrastive.chunked.norms import inverse_norms, normalize_backward
from crossalign.contrastive.problem import ContrastiveGrads, label_range
from crossalign.contrastive.row_loss import row_loss
from crossalign.contrastive.terms import TermRules
from tests.support.contrastive.loss_outcomes import upstream_of
from tests.support.contrastive_cases import LOSS_CASES, fused, make_inputs, make_problem
from tests.support.counted import LargestAllocation
from tests.support.pooling_cases import DTYPES, Run


@pytest.mark.parametrize("name", ["chunks", "everything", "beyond_the_tiles", "raw", "learned"])
def test_size_of_the_chunks_does_not_matter(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case, run = LOSS_CASES[name], Run("torch", "cpu", torch.float64)
    inputs, upstream = make_inputs(case, run), upstream_of(case, run)
    whole = fused(inputs, "torch", upstream)
    monkeypatch.setattr(torch_logits, "CPU_CHUNK_LOGITS", 1)
    for num_rows in (1, 4, case.num_pairs - 1):
        monkeypatch.setattr(torch_logits, "MIN_ROWS", num_rows)
        chunked = fused(inputs, "torch", upstream)
        torch.testing.assert_close(chunked.loss, whole.loss, rtol=1e-12, atol=0)
        torch.testing.assert_close(chunked.grads, whole.grads, rtol=1e-10, atol=1e-13)
        torch.testing.assert_close(chunked.stats, whole.stats)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bound", [None, 8.0])
def test_no_tensor_of_queries_times_columns(bound: float | None, symmetric: bool) -> None:
    query, candidates = torch.randn(4096, 8), torch.randn(4096 + 1024, 8)
    ids = torch.arange(4096) // 2
    problem = make_problem(
        4096,
        query.dtype,
        bound=bound,
        symmetric=symmetric,
        query_ids=ids,
        candidate_ids=ids,
        multi_positive=True,
        negative_owner=torch.arange(1024),
        hard_negative_weight=0.5,
    )
    with LargestAllocation() as largest:
        sums = torch_passes.contrastive_fwd(query, candidates, problem, None, True)
        grads = [torch.ones_like(getattr(sums, name)) for name in ContrastiveGrads._fields]
        torch_passes.contrastive_bwd(query, candidates, problem, sums, ContrastiveGrads(*grads))
        if not symmetric:
            row_loss(query, candidates, None, problem, TermRules(), None, "mean", with_stats=True)
    assert 0 < largest.elements <= torch_logits.CPU_CHUNK_LOGITS < 4096 * 5120 / 4


def test_loss_without_a_gradient_is_that_with_one() -> None:
    """With a gradient to come, the one-way loss is another pass; scale 100: with a maximum."""
    query, key, ids = torch.randn(70, 5), torch.randn(70, 5), torch.arange(70) // 3
    for options in ({}, {"temperature": 0.01}, {"ids": ids}, {"ids": ids, "same_id": "positive"}):
        loss, stats = fused_contrastive_loss(query, key, **options, return_stats=True)
        leaf = query.clone().requires_grad_()
        other, other_stats = fused_contrastive_loss(leaf, key, **options, return_stats=True)
        assert other.requires_grad and not loss.requires_grad
        torch.testing.assert_close(other, loss, rtol=1e-6, atol=0)
        torch.testing.assert_close(other_stats, stats, rtol=1e-6, atol=0)


def test_gradient_of_the_weights_is_not_lost() -> None:
    query, key = torch.randn(6, 5, requires_grad=True), torch.randn(6, 5)
    weights = torch.rand(6, requires_grad=True)
    loss = fused_contrastive_loss(query, key, weights=weights)
    terms = fused_contrastive_loss(query, key, reduction="none").detach()
    (gradient,) = torch.autograd.grad(loss, weights)
    total = weights.detach().sum()
    torch.testing.assert_close(gradient, terms / total - (weights.detach() @ terms) / total**2)


@pytest.mark.parametrize("dtype", DTYPES)
def test_inverse_norms(dtype: torch.dtype) -> None:
    rows = torch.randn(5, 300).to(dtype)
    rows[1], rows[2] = 0, rows[2] * 2.0**-12
    inverse = inverse_norms(rows)
    assert inverse.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    expected = rows.double().norm(dim=1).clamp_min(1e-12).reciprocal()
    torch.testing.assert_close(inverse.double(), expected, rtol=1e-6, atol=0)


def test_normalize_backward_is_that_of_normalize() -> None:
    rows = torch.randn(6, 4, dtype=torch.float64)
    rows[1], rows[2], rows[3] = 0, rows[2] * 1e-13, rows[3] * 1e3
    rows.requires_grad_()
    grad_unit = torch.randn(6, 4, dtype=torch.float64)
    (expected,) = torch.autograd.grad(F.normalize(rows, dim=1), rows, grad_unit)
    got = normalize_backward(grad_unit, rows.detach(), inverse_norms(rows.detach()))
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("label_offset", [-9, -3, 0, 2, 6, 30])
@pytest.mark.parametrize("rows", [slice(0, 5), slice(3, 8), slice(5, 6)])
def test_own_columns_of_a_chunk(rows: slice, label_offset: int) -> None:
    """Every (row, own column) of the chunk, and no other, is in the view."""
    problem = make_problem(7, torch.float32, label_offset=label_offset)
    tile = torch.zeros(rows.stop - rows.start, 10)
    label_view(tile, problem, rows).fill_(1)
    expected = {
        (row - rows.start, row + label_offset)
        for row in range(rows.start, rows.stop)
        if 0 <= row + label_offset < 7
    }
    assert {tuple(place) for place in tile.nonzero().tolist()} == expected
    first_row, first_column, count = label_range(problem, rows.start, rows.stop)
    assert count == len(expected)
    if count:
        assert (first_row - rows.start, first_column) == min(expected)
