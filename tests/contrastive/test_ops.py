"""The registered contrastive ops on blocks of a larger batch: sums, counts and gradients."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from crossalign.contrastive.ops import contrastive_sums
from crossalign.contrastive.problem import (
    NON_DIFFERENTIABLE_SUMS,
    ContrastiveProblem,
    ContrastiveSums,
)
from tests.support.contrastive_cases import make_problem
from tests.support.pooling_cases import BACKENDS, INTERPRETED_DTYPES

SMOOTH = [name for name in ContrastiveSums._fields if name not in NON_DIFFERENTIABLE_SUMS]


def dense_sums(query: Tensor, candidates: Tensor, problem: ContrastiveProblem) -> ContrastiveSums:
    """The sums from logits written out, in float64."""
    query, candidates = query.double(), candidates.double()
    if problem.normalize:
        query, candidates = (x / x.norm(dim=1, keepdim=True) for x in (query, candidates))
    logits = query @ candidates.T * problem.scale.double()
    index, column = torch.arange(len(query))[:, None], torch.arange(len(candidates))[None]
    if problem.negative_owner is not None:
        is_owned = torch.zeros_like(logits, dtype=torch.bool)
        is_owned[:, problem.num_keys :] = index == problem.negative_owner
        logits = logits + problem.hard_negative_weight * is_owned.double()
        if not problem.share_negatives:
            logits = logits.masked_fill((column >= problem.num_keys) & ~is_owned, -math.inf)
    is_label = (index + problem.label_offset == column) & (column < problem.num_keys)
    is_positive = torch.zeros_like(is_label)
    if problem.query_ids is not None and problem.candidate_ids is not None:
        is_same = problem.query_ids[:, None] == problem.candidate_ids
        is_positive[:, : is_same.shape[1]] = is_same
        is_positive &= ~is_label & (logits > -math.inf)
        if not problem.multi_positive:
            logits = logits.masked_fill(is_positive, -math.inf)
            is_positive = torch.zeros_like(is_label)
    positive_logit = torch.where(is_label, logits, 0).sum(1)
    rest = logits.masked_fill(is_label, -math.inf)
    positive = torch.where(is_positive, rest, 0)
    rival = rest.masked_fill(is_positive, -math.inf)
    keys = slice(0, problem.num_keys)
    none = query.new_empty(0)
    multi, both = problem.multi_positive, problem.multi_positive and problem.symmetric
    return ContrastiveSums(
        positive_logit=positive_logit,
        row_negative_lse=rest.logsumexp(1),
        column_negative_lse=rest[:, keys].logsumexp(0) if problem.symmetric else none,
        row_positive_sum=positive.sum(1) if multi else none,
        row_positive_count=is_positive.sum(1) if multi else none,
        column_positive_sum=positive[:, keys].sum(0) if both else none,
        column_positive_count=is_positive[:, keys].sum(0) if both else none,
        row_logit_sum=none,
        row_logit_count=none,
        column_logit_sum=none,
        column_logit_count=none,
        num_above=(rival > positive_logit[:, None]).sum(1),
        num_tied=torch.zeros(len(query)),
        query_inverse_norm=none,
        candidate_inverse_norm=none,
    )


# Blocks of a larger batch: N rows, their own columns from the offset on, K keys among M columns.
BLOCKS = {
    "own_keys_ahead": (20, 34, 40, {"label_offset": 7}),
    "own_keys_behind": (20, 12, 15, {"label_offset": -5, "normalize": False, "bound": None}),
    "some_own_keys_beyond": (18, 17, 20, {"label_offset": 4, "bound": None}),
    "own_key_would_be_a_negative": (6, 3, 35, {"symmetric": False}),
    "no_keys": (5, 0, 9, {}),
    "one_row_of_many": (1, 33, 33, {"label_offset": 32}),
    "ids_of_keys_alone": (17, 17, 20, {"ids": 17, "multi_positive": True}),
    "ids": (17, 20, 34, {"ids": 34, "label_offset": 2}),
    "owners": (9, 4, 21, {"owner": True, "hard_negative_weight": -0.8, "label_offset": -3}),
    "owners_elsewhere": (9, 4, 21, {"owner": True, "share_negatives": False, "ids": 21}),
}


def make_block(name: str, dtype: torch.dtype) -> tuple[Tensor, Tensor, ContrastiveProblem]:
    num_rows, num_keys, num_candidates, options = BLOCKS[name]
    options = dict(options)
    if num_ids := options.pop("ids", 0):
        options["query_ids"] = torch.randint(0, 5, (num_rows,)) * 2**40
        options["candidate_ids"] = torch.randint(0, 5, (num_ids,)) * 2**40
    if options.pop("owner", False):
        # -1: owned by a row of another rank.
        options["negative_owner"] = torch.randint(-1, num_rows, (num_candidates - num_keys,))
    problem = make_problem(num_keys, dtype, **options)
    rows, candidates = (torch.randn(size, 5).to(dtype) for size in (num_rows, num_candidates))
    return rows, candidates, problem


def tolerance(dtype: torch.dtype) -> dict[str, Any]:
    return {torch.float64: {"rtol": 1e-10, "atol": 1e-11}}.get(dtype, {"rtol": 2e-5, "atol": 2e-5})


# Equals reference


@pytest.mark.parametrize("dtype", INTERPRETED_DTYPES)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", BLOCKS)
def test_block_equals_dense_sums(name: str, backend: str, dtype: torch.dtype) -> None:
    query, candidates, problem = make_block(name, dtype)
    leaves = query.requires_grad_(), candidates.requires_grad_(), problem.scale.requires_grad_()
    sums = contrastive_sums(
        query, candidates, problem, with_stats=True, use_triton=backend == "triton"
    )
    truth = dense_sums(query, candidates, problem)
    for field in (*SMOOTH, "row_positive_count", "column_positive_count", "num_above", "num_tied"):
        got, expected = getattr(sums, field), getattr(truth, field)
        torch.testing.assert_close(got.double(), expected.double(), **tolerance(dtype), msg=field)
    # Sums over nothing are -inf, and nothing flows back from them.
    finite = [field for field in SMOOTH if getattr(truth, field).numel()]
    weights = {field: torch.randn_like(getattr(truth, field)) for field in finite}
    results = []
    for part in (sums, truth):
        total = sum(
            (getattr(part, field).masked_fill(getattr(truth, field) == -math.inf, 0) * weight).sum()
            for field, weight in weights.items()
        )
        results.append(torch.autograd.grad(total, leaves))
    for got, expected in zip(*results, strict=True):
        wide: dict[str, Any] = (
            {"rtol": 5e-3, "atol": 5e-3} if got.dtype == torch.float16 else tolerance(dtype)
        )
        torch.testing.assert_close(got, expected, **wide, check_dtype=False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("num_rows", "num_candidates"), [(0, 5), (5, 0), (0, 0)])
def test_blocks_without_rows_or_columns(
    num_rows: int, num_candidates: int, backend: str, dtype: torch.dtype
) -> None:
    """A rank may have no rows while others have some."""
    query = torch.randn(num_rows, 4).to(dtype).requires_grad_()
    candidates = torch.randn(num_candidates, 4).to(dtype).requires_grad_()
    problem = make_problem(num_candidates, dtype)
    sums = contrastive_sums(
        query, candidates, problem, with_stats=True, use_triton=backend == "triton"
    )
    assert not sums.positive_logit.any() and not sums.num_above.any() and not sums.num_tied.any()
    assert (sums.row_negative_lse == -math.inf).all() and (
        sums.column_negative_lse == -math.inf
    ).all()
    assert sums.row_negative_lse.shape == (num_rows,) and sums.column_negative_lse.shape == (
        num_candidates,
    )
    grads = torch.autograd.grad(
        sum(getattr(sums, name).sum() for name in SMOOTH), (query, candidates)
    )
    assert not grads[0].any() and not grads[1].any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_positive_logits_known_from_another_block(backend: str) -> None:
    """Two blocks of columns count as many rivals as their concatenation."""
    query, candidates = torch.randn(9, 4), torch.randn(30, 4)
    triton: dict[str, Any] = {"use_triton": backend == "triton", "with_stats": True}
    whole = contrastive_sums(query, candidates, make_problem(30, query.dtype), **triton)
    first = contrastive_sums(query, candidates[:12], make_problem(12, query.dtype), **triton)
    elsewhere = make_problem(18, query.dtype, label_offset=-12)
    second = contrastive_sums(
        query, candidates[12:], elsewhere, known_positive_logit=first.positive_logit, **triton
    )
    assert torch.equal(first.positive_logit, whole.positive_logit) and torch.equal(
        second.positive_logit, whole.positive_logit
    )
    assert torch.equal(first.num_above + second.num_above, whole.num_above)
    torch.testing.assert_close(
        torch.logaddexp(first.row_negative_lse, second.row_negative_lse), whole.row_negative_lse
    )
