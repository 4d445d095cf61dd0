"""An input that needs no gradient costs no product and no buffer, and changes no other gradient."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from crossalign import fused_contrastive_loss
from crossalign.contrastive.chunked import torch_passes
from crossalign.contrastive.problem import ContrastiveGrads, GradientNeeds
from tests.support.contrastive_cases import make_problem
from tests.support.counted import multiply_adds
from tests.support.pooling_cases import BACKENDS

# Several chunks of both backends' workspaces, the last of them not whole; D is no multiple of the
# tile's.
NUM_PAIRS, NUM_NEGATIVES, NUM_FEATURES = 70, 66, 20
NUM_CANDIDATES = NUM_PAIRS + NUM_NEGATIVES
SIDES = ("query", "key", "negatives", "temperature")
SUBSETS = [
    tuple(itertools.compress(SIDES, chosen))
    for chosen in itertools.product((True, False), repeat=4)
    if any(chosen)
]


def leaves(needs: tuple[str, ...]) -> dict[str, Tensor]:
    torch.manual_seed(1)
    made = {
        "query": torch.randn(NUM_PAIRS, NUM_FEATURES),
        "key": torch.randn(NUM_PAIRS, NUM_FEATURES),
        "negatives": torch.randn(NUM_NEGATIVES, NUM_FEATURES),
        "temperature": torch.tensor(0.1),
    }
    return {name: value.requires_grad_(name in needs) for name, value in made.items()}


def step(needs: tuple[str, ...], backend: str, symmetric: bool) -> dict[str, Tensor]:
    given = leaves(needs)
    fused_contrastive_loss(**given, symmetric=symmetric, backend=backend).backward()
    assert all(value.grad is None for name, value in given.items() if name not in needs)
    return {name: leaf.grad for name in needs if (leaf := given[name]).grad is not None}


def rows_wanted(needs: tuple[str, ...]) -> int:
    """How many candidates need a gradient."""
    return NUM_PAIRS * ("key" in needs) + NUM_NEGATIVES * ("negatives" in needs)


def expected(needs: tuple[str, ...], symmetric: bool) -> int:
    """Candidates times products, of the chunked PyTorch passes: the logits, in both directions once
    more for the backward, and a product for every side that needs a gradient."""
    total = NUM_CANDIDATES * (2 if symmetric else 1) + rows_wanted(needs)
    # The temperature's gradient follows from a whole side's, without a product of its own.
    whole_side = "query" in needs or rows_wanted(needs) == NUM_CANDIDATES
    if "query" in needs or ("temperature" in needs and not whole_side):
        total += NUM_CANDIDATES
    return total


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("needs", SUBSETS, ids="+".join)
def test_the_chunked_passes_form_no_product_that_nobody_needs(
    needs: tuple[str, ...], symmetric: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from crossalign.contrastive.chunked import torch_logits

    monkeypatch.setattr(torch_logits, "CPU_CHUNK_LOGITS", 1)
    monkeypatch.setattr(torch_logits, "MIN_ROWS", 32)
    counted = multiply_adds(lambda: step(needs, "torch", symmetric))
    assert counted == NUM_PAIRS * NUM_FEATURES * expected(needs, symmetric)


@pytest.mark.parametrize("backend", BACKENDS[1:])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize(
    "needs",
    [("query",), ("key",), ("negatives",), ("query", "key"), ("key", "temperature")],
    ids="+".join,
)
def test_the_kernels_form_no_product_that_nobody_needs(
    needs: tuple[str, ...], symmetric: bool, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted are the library's products and the chunks of logits that are formed again."""
    from crossalign.kernels import contrastive_backward, contrastive_gradient

    chunks: list[Any] = []
    gradient_tiles = contrastive_gradient.gradient_tiles

    def recorded(*arguments: Any) -> None:
        chunks.append(arguments[3])
        gradient_tiles(*arguments)

    monkeypatch.setattr(contrastive_backward, "gradient_tiles", recorded)
    counted = multiply_adds(lambda: step(needs, backend, symmetric))
    of_query = NUM_CANDIDATES if "query" in needs else 0
    assert counted == NUM_PAIRS * NUM_FEATURES * (of_query + rows_wanted(needs))
    again = {
        column for chunk in chunks for column in range(chunk.columns.start, chunk.columns.stop)
    }
    if needs == ("key",):  # chunks of 64 columns: that of the last keys begins the negatives too
        assert again == set(range(128))
    if needs == ("negatives",):
        assert again == set(range(64, NUM_CANDIDATES))
    if "query" in needs or "temperature" in needs:
        assert again == set(range(NUM_CANDIDATES))


@pytest.mark.parametrize("backend", BACKENDS[1:])
@pytest.mark.parametrize("needs", [("query", "key"), ("query", "key", "temperature")], ids="+".join)
def test_one_product_serves_both_halves_of_a_sides_own_logits(
    needs: tuple[str, ...], backend: str
) -> None:
    """Beside two of the gradient of the pairs' logits."""
    given = leaves(needs)
    del given["negatives"]
    directions: Any = ("query_to_key", "query_to_query")
    loss = fused_contrastive_loss(**given, directions=directions, backend=backend)
    assert multiply_adds(loss.backward) == 3 * NUM_PAIRS * NUM_PAIRS * NUM_FEATURES


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("symmetric", [False, True])
def test_no_gradient_depends_on_the_others(symmetric: bool, backend: str) -> None:
    whole = step(SIDES, backend, symmetric)
    for needs in SUBSETS if backend == "torch" else SUBSETS[1:4]:
        for name, gradient in step(needs, backend, symmetric).items():
            torch.testing.assert_close(gradient, whole[name], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_backward_pass_returns_the_rows_that_are_needed(backend: str) -> None:
    query, candidates = torch.randn(NUM_PAIRS, 5), torch.randn(NUM_CANDIDATES, 5)
    problem = make_problem(NUM_PAIRS, query.dtype)
    contrastive_bwd: Any = torch_passes.contrastive_bwd
    if backend == "triton":
        from crossalign.kernels import contrastive_backward

        contrastive_bwd = contrastive_backward.contrastive_bwd
    sums = torch_passes.contrastive_fwd(query, candidates, problem, None, False)
    grads = ContrastiveGrads(
        *(torch.rand_like(getattr(sums, name)) for name in ContrastiveGrads._fields)
    )
    whole = contrastive_bwd(query, candidates, problem, sums, grads, GradientNeeds())
    for rows in (slice(0, NUM_PAIRS), slice(NUM_PAIRS, NUM_CANDIDATES), slice(3, 3)):
        needs = GradientNeeds(rows.start == 3, rows.start != 3, False, rows)
        part = contrastive_bwd(query, candidates, problem, sums, grads, needs)
        assert part[0].shape == (NUM_PAIRS if needs.query else 0, 5)
        torch.testing.assert_close(part[1], whole[1][rows])
