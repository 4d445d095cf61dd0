"""Equal ids are masked alike whether their pairs are listed or compared in full."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from crossalign import fused_contrastive_loss, reference
from crossalign.contrastive.chunked.equal_ids import equal_pairs
from crossalign.contrastive.problem import ContrastiveProblem


def problem_of(query_ids: Tensor, candidate_ids: Tensor, **options: Any) -> ContrastiveProblem:
    scale = torch.ones(())
    return ContrastiveProblem(scale, query_ids, candidate_ids, num_keys=len(query_ids), **options)


@pytest.mark.parametrize("high", [1, 4, 30, 2**40])
def test_lists_every_pair_once(high: int) -> None:
    query_ids, more = torch.randint(0, high, (9,)) - 2**33, torch.randint(0, high, (5,)) - 2**33
    candidate_ids = torch.cat([query_ids, more])
    pairs = equal_pairs(problem_of(query_ids, candidate_ids))
    assert pairs is not None
    for rows, start in ((slice(0, 9), 0), (slice(2, 5), 0), (slice(3, 9), 3), (slice(4, 4), 4)):
        expected = query_ids[rows, None] == candidate_ids[None, start:]
        row, column = pairs.within(rows, slice(start, 20))
        found = torch.zeros_like(expected)
        found[row, column] = True
        assert torch.equal(found, expected) and len(row) == int(expected.sum())


def test_too_many_pairs_and_positives_are_not_listed() -> None:
    ids = torch.zeros(40, dtype=torch.long)
    assert equal_pairs(problem_of(ids, ids)) is None
    assert equal_pairs(problem_of(ids[:3], ids[:3], multi_positive=True)) is None
    assert equal_pairs(ContrastiveProblem(torch.ones(()))) is None


WITHIN = {"directions": ("query_to_key", "key_to_query", "query_to_query", "key_to_key")}
SMOOTH = {"label_smoothing": 0.2, "debias": 0.1}


@pytest.mark.parametrize("options", [{}, {"symmetric": True}, WITHIN, WITHIN | SMOOTH])
@pytest.mark.parametrize("labels", [None, 2, 60])
def test_equals_the_reference_over_several_chunks(
    labels: int | None, options: dict[str, Any]
) -> None:
    """150 rows are three chunks of a side's own logits; of two ids too many pairs are equal."""
    query, key = torch.randn(2, 150, 6, dtype=torch.float64)
    leaves = [query.requires_grad_(), (key + 0.5 * query.detach()).requires_grad_()]
    ids = None if labels is None else torch.randint(0, labels, (150,))
    given = {"temperature": 0.1, "ids": ids} | options
    theirs, _ = reference.contrastive_loss(*leaves, **given)
    ours = [fused_contrastive_loss(*leaves, **given) for _ in range(2)]
    torch.testing.assert_close(ours[0], theirs, rtol=1e-11, atol=0)
    found = [torch.autograd.grad(loss, leaves) for loss in (*ours, theirs)]
    torch.testing.assert_close(found[0], found[2], rtol=1e-9, atol=1e-11)
    for mine, again in zip(found[0], found[1], strict=True):
        assert torch.equal(mine, again)
