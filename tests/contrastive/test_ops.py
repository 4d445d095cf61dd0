"""The registered contrastive ops on blocks of a larger batch: sums, counts and gradients."""

from __future__ import annotations

import math

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


def dense_sums(query: Tensor, columns: Tensor, problem: ContrastiveProblem) -> ContrastiveSums:
    """The sums from logits written out, in float64."""
    query, columns = query.double(), columns.double()
    if problem.normalize:
        query, columns = (x / x.norm(dim=1, keepdim=True) for x in (query, columns))
    logits = query @ columns.T * problem.scale.double()
    index, column = torch.arange(len(query))[:, None], torch.arange(len(columns))[None]
    if problem.negative_owner is not None:
        is_owned = torch.zeros_like(logits, dtype=torch.bool)
        is_owned[:, problem.num_keys :] = index == problem.negative_owner
        logits = logits + problem.hard_negative_weight * is_owned.double()
        if not problem.share_negatives:
            logits = logits.masked_fill((column >= problem.num_keys) & ~is_owned, -math.inf)
    is_own = (index + problem.label_offset == column) & (column < problem.num_keys)
    is_positive = torch.zeros_like(is_own)
    if problem.query_ids is not None and problem.column_ids is not None:
        is_same = problem.query_ids[:, None] == problem.column_ids
        is_positive[:, : is_same.shape[1]] = is_same
        is_positive &= ~is_own & (logits > -math.inf)
        if not problem.multi_positive:
            logits = logits.masked_fill(is_positive, -math.inf)
            is_positive = torch.zeros_like(is_own)
    own = torch.where(is_own, logits, 0).sum(1)
    rest = logits.masked_fill(is_own, -math.inf)
    positive = torch.where(is_positive, rest, 0)
    rival = rest.masked_fill(is_positive, -math.inf)
    keys = slice(0, problem.num_keys)
    none = query.new_empty(0)
    multi, both = problem.multi_positive, problem.multi_positive and problem.symmetric
    return ContrastiveSums(
        own=own,
        row_rest=rest.logsumexp(1),
        column_rest=rest[:, keys].logsumexp(0) if problem.symmetric else none,
        row_positive_sum=positive.sum(1) if multi else none,
        row_positive_count=is_positive.sum(1) if multi else none,
        column_positive_sum=positive[:, keys].sum(0) if both else none,
        column_positive_count=is_positive[:, keys].sum(0) if both else none,
        num_above=(rival > own[:, None]).sum(1),
        num_tied=torch.zeros(len(query)),
        query_inverse_norm=none,
        column_inverse_norm=none,
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
    num_rows, num_keys, num_columns, options = BLOCKS[name]
    options = dict(options)
    if num_ids := options.pop("ids", 0):
        options["query_ids"] = torch.randint(0, 5, (num_rows,)) * 2**40
        options["column_ids"] = torch.randint(0, 5, (num_ids,)) * 2**40
    if options.pop("owner", False):
        # -1: owned by a row of another rank.
        options["negative_owner"] = torch.randint(-1, num_rows, (num_columns - num_keys,))
    problem = make_problem(num_keys, dtype, **options)
    rows, columns = (torch.randn(size, 5).to(dtype) for size in (num_rows, num_columns))
    return rows, columns, problem


def tolerance(dtype: torch.dtype) -> dict[str, float]:
    return {torch.float64: {"rtol": 1e-10, "atol": 1e-11}}.get(dtype, {"rtol": 2e-5, "atol": 2e-5})


# Equals reference


@pytest.mark.parametrize("dtype", INTERPRETED_DTYPES)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", BLOCKS)
def test_block_equals_dense_sums(name: str, backend: str, dtype: torch.dtype) -> None:
    query, columns, problem = make_block(name, dtype)
    leaves = query.requires_grad_(), columns.requires_grad_(), problem.scale.requires_grad_()
    sums = contrastive_sums(
        query, columns, problem, with_stats=True, use_triton=backend == "triton"
    )
    truth = dense_sums(query, columns, problem)
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
        wide = {"rtol": 5e-3, "atol": 5e-3} if got.dtype == torch.float16 else tolerance(dtype)
        torch.testing.assert_close(got, expected, **wide, check_dtype=False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("num_rows", "num_columns"), [(0, 5), (5, 0), (0, 0)])
def test_blocks_without_rows_or_columns(
    num_rows: int, num_columns: int, backend: str, dtype: torch.dtype
) -> None:
    """A rank may have no rows while others have some."""
    query = torch.randn(num_rows, 4).to(dtype).requires_grad_()
    columns = torch.randn(num_columns, 4).to(dtype).requires_grad_()
    problem = make_problem(num_columns, dtype)
    sums = contrastive_sums(
        query, columns, problem, with_stats=True, use_triton=backend == "triton"
    )
    assert not sums.own.any() and not sums.num_above.any() and not sums.num_tied.any()
    assert (sums.row_rest == -math.inf).all() and (sums.column_rest == -math.inf).all()
    assert sums.row_rest.shape == (num_rows,) and sums.column_rest.shape == (num_columns,)
    grads = torch.autograd.grad(sum(getattr(sums, name).sum() for name in SMOOTH), (query, columns))
    assert not grads[0].any() and not grads[1].any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_own_logits_known_from_another_block(backend: str) -> None:
    """Two blocks of columns count as many rivals as their concatenation."""
    query, columns = torch.randn(9, 4), torch.randn(30, 4)
    triton = {"use_triton": backend == "triton", "with_stats": True}
    whole = contrastive_sums(query, columns, make_problem(30, query.dtype), **triton)
    first = contrastive_sums(query, columns[:12], make_problem(12, query.dtype), **triton)
    elsewhere = make_problem(18, query.dtype, label_offset=-12)
    second = contrastive_sums(query, columns[12:], elsewhere, known_own=first.own, **triton)
    assert torch.equal(first.own, whole.own) and torch.equal(second.own, whole.own)
    assert torch.equal(first.num_above + second.num_above, whole.num_above)
    torch.testing.assert_close(torch.logaddexp(first.row_rest, second.row_rest), whole.row_rest)
