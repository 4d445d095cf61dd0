"""The contrastive kernels where one tile, one chunk and one program are not enough.

The cases that other tests share are as small as the interpreter's tiles; on a GPU one tile of 128 x
256 holds any of them. Here they are scaled past it. Without a GPU the same code runs at a size that
crosses the interpreter's tiles.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from crossalign import fused_contrastive_loss
from tests.support.contrastive.loss_outcomes import upstream_of
from tests.support.contrastive_cases import (
    LOSS_CASES,
    SYMMETRIC,
    LossCase,
    assert_outcome,
    fused,
    make_inputs,
)
from tests.support.pooling_cases import Run, needs_interpreter

pytest.importorskip("triton", reason="needs triton")
# A GPU's tiles are 8 times the interpreter's in every direction; 17 crosses two of them.
FACTOR = 17
TEMPERATURE = 0.05
ON_CPU = pytest.param("cpu", marks=needs_interpreter)
ON_GPU = pytest.param("cuda", marks=pytest.mark.cuda)


def scaled(case: LossCase, factor: int) -> LossCase:
    num_pairs, num_negatives, num_features, *_ = case
    return case._replace(
        num_pairs=num_pairs * factor,
        num_negatives=None if num_negatives is None else num_negatives * factor,
        num_features=num_features * factor,
    )


SCALED = [name for name in LOSS_CASES if name != "one_of_everything"]


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("name", SCALED)
def test_options_on_many_tiles_equal_the_reference(name: str, dtype: torch.dtype) -> None:
    case, run = scaled(LOSS_CASES[name], FACTOR), Run("triton", "cuda", dtype)
    inputs, upstream = make_inputs(case, run), upstream_of(case, run)
    assert_outcome(fused(inputs, "triton", upstream), inputs, upstream)


@pytest.mark.parametrize("device", [ON_CPU, ON_GPU])
@pytest.mark.parametrize("name", ["chunks", "splits", "own_negatives", "everything"])
def test_few_programs_walk_over_many_tiles(
    name: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three programs: column sums go on from one row block to the next, row sums start anew."""
    from crossalign.kernels import contrastive_forward, contrastive_gradient, kept_exponentials

    for module in (contrastive_forward, contrastive_gradient):
        monkeypatch.setattr(module, "program_slots", lambda x: 3)
    monkeypatch.setattr(kept_exponentials, "KEPT_BYTES", 0)
    case = LOSS_CASES[name] if device == "cpu" else scaled(LOSS_CASES[name], FACTOR)
    run = Run("triton", device, torch.float32)
    inputs, upstream = make_inputs(case, run), upstream_of(case, run)
    assert_outcome(fused(inputs, "triton", upstream), inputs, upstream)


def rows(count: int, width: int, device: str, dtype: torch.dtype) -> Tensor:
    x = torch.randn(count, width, device=device) * (0.3 + 2 * torch.rand(count, 1, device=device))
    return x.to(dtype).requires_grad_()


class Truth:
    """Log-sum-exps in float64, by blocks of rows; from them, gradients of any rows."""

    def __init__(self, query: Tensor, key: Tensor, weights: Tensor, symmetric: bool) -> None:
        self.query, self.key = query.detach().double(), key.detach().double()
        self.units = [F.normalize(x, dim=1) for x in (self.query, self.key)]
        self.share = 0.5 if symmetric else 1.0
        self.weights, self.symmetric = self.share * weights.double(), symmetric
        self.of_rows, self.of_columns = self._log_sum_exps()

    def _log_sum_exps(self) -> tuple[Tensor, Tensor]:
        of_rows, query, key = [], *self.units
        of_columns = torch.full_like(self.weights, -torch.inf)
        for block in query.split(1024):
            logits = block @ key.T / TEMPERATURE
            of_rows.append(logits.logsumexp(1))
            of_columns = torch.logaddexp(of_columns, logits.logsumexp(0))
        return torch.cat(of_rows), of_columns

    def loss(self) -> Tensor:
        query, key = self.units
        positive = (query * key).sum(1) / TEMPERATURE
        terms = self.of_rows - positive
        if self.symmetric:
            terms = terms + self.of_columns - positive
        return (self.weights * terms).sum()

    def of_logits(self, some: Tensor, others: Tensor) -> Tensor:
        """d loss / d logits of these rows and columns."""
        query, key = self.units
        logits = query[some] @ key[others].T / TEMPERATURE
        gradient = self.weights[some, None] * (logits - self.of_rows[some, None]).exp()
        of_positive = self.weights[some]
        if self.symmetric:
            gradient += self.weights[None, others] * (logits - self.of_columns[None, others]).exp()
            of_positive = 2 * of_positive
        is_positive = some[:, None] == others[None, :]
        return gradient - is_positive * of_positive[:, None]

    def gradients(self, picked: Tensor) -> list[Tensor]:
        """Of the picked queries and keys."""
        everything = torch.arange(len(self.query), device=self.query.device)
        query, key = self.units
        of_query = self.of_logits(picked, everything) @ key
        of_key = self.of_logits(everything, picked).T @ query
        pairs = ((of_query, self.query[picked]), (of_key, self.key[picked]))
        results = []
        for gradient, x in pairs:
            norm = x.norm(dim=1, keepdim=True)
            unit = x / norm
            along = (gradient * unit).sum(1, keepdim=True)
            results.append((gradient - unit * along) / norm / TEMPERATURE)
        return results


def error(ours: Tensor, truth: Tensor) -> float:
    return float((ours.double() - truth).norm() / truth.norm())


# (pairs, features): three chunks of the backward's workspace in both directions, and wide rows.
ON_GPU_SIZES = [(2 * 8192 + 257, 1024), (9000, 4096)]


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize(
    ("device", "size"),
    [
        pytest.param("cpu", (140, 20), marks=needs_interpreter),
        *(pytest.param("cuda", size, marks=pytest.mark.cuda) for size in ON_GPU_SIZES),
    ],
)
def test_gradients_across_chunks_equal_float64_on_sampled_rows(
    device: str, size: tuple[int, int], symmetric: bool
) -> None:
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    query, key = (rows(*size, device, dtype) for _ in "qk")
    with torch.no_grad():
        key += 0.6 * query
    weights = torch.rand(size[0], device=device) + 0.1
    loss = fused_contrastive_loss(
        query, key, temperature=TEMPERATURE, symmetric=symmetric, weights=weights,
        reduction="sum", backend="triton",
    )  # fmt: skip
    gradients = torch.autograd.grad(loss, [query, key])
    truth = Truth(query, key, weights, symmetric)
    assert error(loss.detach(), truth.loss()) < 1e-5
    picked = torch.randperm(size[0], device=device)[:128]
    # Rounding the gradients to bfloat16 alone makes 1.7e-3 of it.
    limit = 1e-5 if dtype == torch.float32 else 4e-3
    for ours, exact in zip(gradients, truth.gradients(picked), strict=True):
        assert error(ours[picked], exact) < limit


@pytest.mark.parametrize("device", [ON_CPU, ON_GPU])
@pytest.mark.parametrize("options", [{}, SYMMETRIC, SYMMETRIC | {"temperature": 0.01}])
def test_every_run_gives_the_same_bits(options: dict[str, Any], device: str) -> None:
    """A difference that comes and goes is a race; many tiles per program, six runs."""
    size = (80, 20) if device == "cpu" else (40_000, 256)
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    query, key = (rows(*size, device, dtype) for _ in "qk")
    seen = []
    for _ in range(2 if device == "cpu" else 6):
        terms = fused_contrastive_loss(query, key, reduction="none", backend="triton", **options)
        seen.append([terms.detach(), *torch.autograd.grad(terms.sum(), [query, key])])
    for again in seen[1:]:
        assert all(torch.equal(one, other) for one, other in zip(seen[0], again, strict=True))
