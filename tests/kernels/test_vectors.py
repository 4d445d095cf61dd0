"""The kernels around the tiles: partial sums joined, terms of the pairs and their gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from crossalign.contrastive.ops import pair_losses
from crossalign.contrastive.problem import ContrastiveGrads, ContrastiveSums, empty_sums
from crossalign.contrastive.terms import pair_terms
from tests.support.contrastive_cases import make_problem
from tests.support.pooling_cases import BACKENDS

pytest.importorskip("triton", reason="needs triton")
INTERPRETED = pytest.mark.parametrize("backend", BACKENDS[1:])
NUM_PAIRS = 200  # beyond one block
LN_2 = torch.tensor(2.0, dtype=torch.float64).log()


def unfilled_sums(
    symmetric: bool, multi_positive: bool, dtype: torch.dtype, **options: bool
) -> ContrastiveSums:
    options |= {"symmetric": symmetric, "multi_positive": multi_positive}
    problem = make_problem(NUM_PAIRS, dtype, **options)
    return empty_sums(torch.empty(NUM_PAIRS, 1, dtype=dtype), problem, NUM_PAIRS, True)


@INTERPRETED
@pytest.mark.parametrize("num_lines", [1, 16, 37])
@pytest.mark.parametrize("is_bounded", [True, False])
def test_lines_of_partial_sums_are_joined(num_lines: int, is_bounded: bool, backend: str) -> None:
    from crossalign.kernels.contrastive_join import Partials, join
    from crossalign.kernels.launch import device_guard

    generator = torch.Generator().manual_seed(num_lines)
    values = torch.randn(2, num_lines, NUM_PAIRS, generator=generator, dtype=torch.float64) * 20
    values[:, :, 5] = -torch.inf  # everything excluded
    sums_of = values.exp2() if is_bounded else values
    counts = torch.randint(0, 9, (2, num_lines, NUM_PAIRS), generator=generator).int()
    unread = values.new_empty(0)
    partials = Partials(
        sums_of[0], sums_of[1], values, 2 * values, 3 * values, 4 * values, unread, counts
    )
    sums = unfilled_sums(True, True, torch.float64, with_logit_sums=True)
    with device_guard(values):
        join(partials, sums, is_bounded)
    expected = torch.logsumexp(values * LN_2, 1)
    torch.testing.assert_close(sums.row_negative_lse, expected[0])
    torch.testing.assert_close(sums.column_negative_lse, expected[1])
    for name, total in (
        ("row_positive_sum", values[0]),
        ("row_positive_count", values[1]),
        ("column_positive_sum", 2 * values[0]),
        ("column_positive_count", 2 * values[1]),
        ("row_logit_sum", 3 * values[0]),
        ("row_logit_count", 3 * values[1]),
        ("column_logit_sum", 4 * values[0]),
        ("column_logit_count", 4 * values[1]),
    ):
        torch.testing.assert_close(getattr(sums, name), total.sum(0), msg=name)
    above, at_least = counts.sum(1, dtype=torch.int32)
    assert torch.equal(sums.num_above, above) and torch.equal(sums.num_tied, at_least - above)


def filled_sums(symmetric: bool, multi_positive: bool, dtype: torch.dtype) -> ContrastiveSums:
    generator = torch.Generator().manual_seed(1)
    sums = unfilled_sums(symmetric, multi_positive, dtype)
    for name in (
        "positive_logit",
        "row_negative_lse",
        "column_negative_lse",
        "row_positive_sum",
        "column_positive_sum",
    ):
        getattr(sums, name).normal_(generator=generator).mul_(10)
    for name in ("row_positive_count", "column_positive_count"):
        getattr(sums, name).random_(0, 4, generator=generator)
    sums.positive_logit[:4] = torch.tensor([300.0, -300.0, 0.0, 12.0])
    sums.row_negative_lse[:4] = torch.tensor([-300.0, 300.0, -torch.inf, 12.0])
    return sums


def terms_and_gradients(sums: ContrastiveSums, upstream: Tensor, use_triton: bool) -> list[Tensor]:
    leaves = sums._replace(
        **{name: getattr(sums, name).detach().requires_grad_() for name in ContrastiveGrads._fields}
    )
    terms = pair_losses(leaves, sums.column_negative_lse.numel() > 0, use_triton=use_triton)
    wanted = [getattr(leaves, name) for name in ContrastiveGrads._fields]
    grads = torch.autograd.grad(terms, wanted, upstream, materialize_grads=True)
    return [terms.detach(), *grads]


@INTERPRETED
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("multi_positive", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_terms_of_the_pairs_equal_pytorch(
    symmetric: bool, multi_positive: bool, dtype: torch.dtype, backend: str
) -> None:
    sums = filled_sums(symmetric, multi_positive, dtype)
    for upstream in (torch.randn(NUM_PAIRS, dtype=dtype), torch.ones((), dtype=dtype).expand(200)):
        ours = terms_and_gradients(sums, upstream, use_triton=True)
        plain = terms_and_gradients(sums, upstream, use_triton=False)
        for name, got, expected in zip(
            ("terms", *ContrastiveGrads._fields), ours, plain, strict=True
        ):
            torch.testing.assert_close(got, expected, msg=name)


@INTERPRETED
def test_small_terms_keep_their_digits(backend: str) -> None:
    """A term near 0 is e^(rest - own): forming 1 + e first would leave nothing of it."""
    sums = filled_sums(False, False, torch.float32)
    sums.positive_logit.fill_(0)
    sums.row_negative_lse.copy_(torch.linspace(-80, 5, NUM_PAIRS))
    terms = pair_losses(sums, False, use_triton=True)
    expected = torch.nn.functional.softplus(sums.row_negative_lse.double(), threshold=50.0)
    torch.testing.assert_close(terms.double(), expected, rtol=1e-6, atol=0.0)


@INTERPRETED
@pytest.mark.parametrize("positive_logit", [torch.inf, -torch.inf, torch.nan])
def test_own_logit_that_is_not_finite_is_not_hidden(positive_logit: float, backend: str) -> None:
    sums = filled_sums(True, False, torch.float32)
    sums.positive_logit[7] = positive_logit
    terms = pair_losses(sums, True, use_triton=True)
    assert not terms[7].isfinite() and terms[8:].isfinite().all()
    assert pair_terms(sums, True)[7].isnan() == terms[7].isnan()
