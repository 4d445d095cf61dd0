"""Exponentials that the chunked PyTorch passes keep for the backward pass: fewer products, the same
gradients."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from crossalign import fused_contrastive_loss
from crossalign.contrastive import one_process
from crossalign.contrastive.choices import Direction
from crossalign.contrastive.chunked import chunk, torch_logits
from crossalign.contrastive.problem import ContrastiveProblem
from tests.support.counted import multiply_adds

NUM_PAIRS, NUM_NEGATIVES, NUM_FEATURES, ROWS = 30, 6, 5, 8  # four chunks, the last not whole
ALL = get_args(Direction)
CASES: dict[str, dict[str, Any]] = {
    "symmetric": {"symmetric": True},
    "ids": {"symmetric": True, "ids": torch.arange(NUM_PAIRS) // 2},
    "four directions": {"directions": ALL},
    "own side": {"directions": ("query_to_key", "query_to_query")},
    "owned negatives": {
        "directions": ALL,
        "negatives": torch.randn(NUM_NEGATIVES, NUM_FEATURES, dtype=torch.float64),
        "negative_owner": torch.arange(NUM_NEGATIVES),
        "hard_negative_weight": 0.5,
    },
}


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_logits, "CPU_CHUNK_LOGITS", 1)
    monkeypatch.setattr(torch_logits, "MIN_ROWS", ROWS)
    monkeypatch.setattr(one_process, "small_batch_loss", lambda arguments: None)


def step(**options: Any) -> list[Tensor]:
    torch.manual_seed(3)
    leaves = [
        torch.randn(NUM_PAIRS, NUM_FEATURES, dtype=torch.float64).requires_grad_() for _ in range(2)
    ]
    loss = fused_contrastive_loss(*leaves, backend="torch", **options)
    return [loss.detach(), *torch.autograd.grad(loss, leaves)]


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("name", CASES)
def test_what_is_kept_changes_no_number(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    options = CASES[name]
    monkeypatch.setattr(chunk, "KEPT_BYTES", 0)
    expected = step(**options)
    for num_logits in (NUM_PAIRS * ROWS + 1, 2 * NUM_PAIRS * ROWS, 2**20):
        monkeypatch.setattr(chunk, "KEPT_BYTES", 8 * num_logits)
        torch.testing.assert_close(step(**options), expected, rtol=1e-12, atol=1e-15)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize(
    ("num_kept", "products"), [(0, 4.0), (NUM_PAIRS * 14, 4.0 - 14 / 30), (2**20, 3.0)]
)
def test_what_is_kept_is_not_formed_again(
    num_kept: int, products: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """14: the rows of the last two chunks."""
    monkeypatch.setattr(chunk, "KEPT_BYTES", 8 * num_kept)
    counted = multiply_adds(lambda: step(symmetric=True))
    assert counted == round(products * NUM_PAIRS * NUM_PAIRS * NUM_FEATURES)


@pytest.mark.usefixtures("small_chunks")
def test_a_second_backward_pass_finds_what_was_kept() -> None:
    leaves = [torch.randn(NUM_PAIRS, NUM_FEATURES).requires_grad_() for _ in range(2)]
    loss = fused_contrastive_loss(*leaves, symmetric=True, backend="torch")
    first = torch.autograd.grad(loss, leaves, retain_graph=True)
    assert all(map(torch.equal, first, torch.autograd.grad(loss, leaves)))


def test_a_problem_whose_logits_are_asked_for_keeps_none() -> None:
    query = torch.randn(4, 3)
    problem = ContrastiveProblem(torch.tensor(1.0), num_keys=4, bound=1.0)
    assert chunk.empty_kept(query, 4, problem) is None  # one direction
    both = problem._replace(symmetric=True)
    kept = chunk.empty_kept(query, 4, both)
    assert kept is not None and kept.numel() == 16
    for changed in (
        {"bound": None},
        {"multi_positive": True},
        {"with_logit_sums": True},
        {"row_limit": torch.zeros(4)},
    ):
        assert chunk.empty_kept(query, 4, both._replace(**changed)) is None, changed
