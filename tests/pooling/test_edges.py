"""Pooling at its edges: padding, empty dimensions, views, zero vectors, bad input."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import cast

import pytest
import torch
from torch import Tensor

from crossalign.backends import Backend
from crossalign.pooling.functions import (
    last_token_pool,
    masked_max_pool,
    masked_mean_pool,
    mean_pool_varlen,
)
from tests.support.pooling_cases import BACKENDS, cumulative, lengths_mask, result_and_grad

OPS = torch.ops.crossalign
POOLS = {"mean": masked_mean_pool, "last": last_token_pool, "max": masked_max_pool}
BOTH = pytest.mark.parametrize("normalize", [False, True], ids=["raw", "unit"])
EVERY_POOL = pytest.mark.parametrize("name", POOLS)


# Edges


@BOTH
@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(
    "function",
    [
        *(
            pytest.param(
                partial(masked_mean_pool, backend=cast(Backend, p.values[0])), marks=p.marks
            )
            for p in BACKENDS
        ),
        last_token_pool,
        masked_max_pool,
    ],
)
def test_padding_never_matters(
    function: Callable[..., Tensor], poison: float, normalize: bool
) -> None:
    mask = lengths_mask(3, 0, 5)(6)
    mask[2, 1] = False  # padding between tokens
    clean = torch.randn(3, 6, 4).masked_fill(~mask[:, :, None], 0)
    poisoned = clean.masked_fill(~mask[:, :, None], poison)
    upstream = torch.randn(3, 4)
    function = partial(function, mask=mask, normalize=normalize)
    pooled, grad = result_and_grad(function, poisoned, upstream)
    expected, expected_grad = result_and_grad(function, clean, upstream)
    assert torch.equal(pooled, expected)
    assert torch.equal(grad, expected_grad)
    assert not pooled[1].any() and not grad[~mask].any()
    assert pooled[0].all() and grad[0, 2].any()


@BOTH
@pytest.mark.parametrize("backend", BACKENDS)
def test_upstream_nan_stays_out_of_padding(backend: Backend, normalize: bool) -> None:
    mask = lengths_mask(3, 0)(4)
    _, grad = result_and_grad(
        partial(masked_mean_pool, mask=mask, normalize=normalize, backend=backend),
        torch.randn(2, 4, 3),
        torch.full((2, 3), float("nan")),
    )
    assert grad[0, :3].isnan().all()
    assert not grad[~mask].any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_of_a_token_is_not_hidden(backend: Backend) -> None:
    hidden = torch.ones(2, 3, 4)
    hidden[0, 1, 2] = float("nan")
    pooled = masked_mean_pool(hidden, torch.ones(2, 3), normalize=True, backend=backend)
    assert pooled[0].isnan().all() and not pooled[1].isnan().any()


@BOTH
@EVERY_POOL
def test_same_vector_under_any_padding(name: str, normalize: bool) -> None:
    sentence = torch.randn(5, 4)
    vectors = []
    for left, right in ((0, 0), (0, 3), (3, 0), (40, 600)):
        hidden = torch.randn(1, left + 5 + right, 4)
        hidden[0, left : left + 5] = sentence
        mask = torch.zeros(1, left + 5 + right)
        mask[0, left : left + 5] = 1
        vectors.append(POOLS[name](hidden, mask, normalize=normalize))
    for vector in vectors[1:]:
        torch.testing.assert_close(vector, vectors[0])


@pytest.mark.parametrize("backend", BACKENDS)
def test_mean_is_the_same_alone_and_in_a_batch(backend: Backend) -> None:
    hidden, mask = torch.randn(4, 70, 9), lengths_mask(70, 3, 0, 40)(70)
    together = masked_mean_pool(hidden, mask, backend=backend)
    for row in range(4):
        alone = masked_mean_pool(hidden[row, None], mask[row, None], backend=backend)
        assert torch.equal(alone[0], together[row])


@BOTH
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 0, 4), (2, 3, 0), (0, 0, 0)])
def test_empty_dimensions(shape: tuple[int, int, int], backend: str, normalize: bool) -> None:
    hidden = torch.randn(shape, requires_grad=True)
    for name, function in POOLS.items():
        options = {"backend": backend} if name == "mean" else {}
        pooled = function(hidden, torch.ones(shape[:2]), normalize=normalize, **options)
        assert pooled.shape == (shape[0], shape[2]) and not pooled.any()
        (grad,) = torch.autograd.grad(pooled.sum(), hidden)
        assert grad.shape == shape


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("lengths", "width"), [([], 4), ([0, 0], 4), ([3], 0)])
def test_empty_packed_batches(lengths: list[int], width: int, backend: Backend) -> None:
    hidden = torch.randn(sum(lengths), width, requires_grad=True)
    pooled = mean_pool_varlen(hidden, cumulative(lengths), normalize=True, backend=backend)
    assert pooled.shape == (len(lengths), width) and not pooled.any()
    (grad,) = torch.autograd.grad(pooled.sum(), hidden)
    assert grad.shape == hidden.shape


@pytest.mark.parametrize("backend", BACKENDS)
def test_strided_views_equal_contiguous_ones(backend: Backend) -> None:
    dense = torch.randn(3, 8, 6)
    mask = lengths_mask(8, 2, 5)(8)
    views = {
        "features first": dense.transpose(1, 2).contiguous().transpose(1, 2),
        "tokens first": dense.transpose(0, 1).contiguous().transpose(0, 1),
        "slice": torch.cat([dense, dense], dim=2)[:, :, :6],
        "every other token": dense.repeat_interleave(2, dim=1)[:, ::2],
        "reversed batch": dense.flip(0)[[2, 1, 0]],
    }
    expected, expected_grad = result_and_grad(
        partial(masked_mean_pool, mask=mask, backend=backend), dense, torch.ones(3, 6)
    )
    for name, view in views.items():
        for view_mask in (mask, mask.T.contiguous().T, mask.repeat_interleave(3, dim=1)[:, ::3]):
            function = partial(masked_mean_pool, mask=view_mask, backend=backend)
            pooled, grad = result_and_grad(function, view, torch.ones(3, 6))
            torch.testing.assert_close(pooled, expected, msg=name)
            assert torch.equal(grad, expected_grad), name


@pytest.mark.parametrize("backend", BACKENDS)
def test_expanded_inputs(backend: Backend) -> None:
    hidden, mask = torch.randn(1, 4, 3).expand(5, 4, 3), torch.tensor([[1, 1, 0, 1]]).expand(5, 4)
    pooled = masked_mean_pool(hidden, mask, backend=backend)
    expected = masked_mean_pool(hidden.contiguous(), mask.contiguous(), backend=backend)
    assert torch.equal(pooled, expected)
    bounds = cumulative([1, 9, 3, 9])[::2]  # 0, 10, 22: strided
    packed = torch.randn(3, 22).T
    torch.testing.assert_close(
        mean_pool_varlen(packed, bounds, backend=backend),
        torch.stack([packed[:10].mean(0), packed[10:].mean(0)]),
    )


@pytest.mark.parametrize(
    "mask_dtype", [torch.bool, torch.uint8, torch.int32, torch.int64, torch.float16, torch.float64]
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_mask_dtype_means_the_same(backend: Backend, mask_dtype: torch.dtype) -> None:
    hidden, mask = torch.randn(2, 5, 3), lengths_mask(5, 2)(5)
    pooled = masked_mean_pool(hidden, mask.to(mask_dtype), backend=backend)
    assert torch.equal(pooled, masked_mean_pool(hidden, mask, backend=backend))


@pytest.mark.parametrize("backend", BACKENDS)
def test_zero_vectors_stay_zero_without_gradient(backend: Backend) -> None:
    hidden = torch.zeros(2, 3, 4)
    hidden[0, 0], hidden[0, 1] = 1, -1  # tokens that cancel
    function = partial(masked_mean_pool, mask=torch.ones(2, 3), normalize=True, backend=backend)
    pooled, grad = result_and_grad(function, hidden, torch.randn(2, 4))
    assert not pooled.any() and not grad.any()


@BOTH
@pytest.mark.parametrize("name", ["last", "max"])
def test_zero_vectors_stay_zero_for_last_and_max(name: str, normalize: bool) -> None:
    function = partial(POOLS[name], mask=torch.ones(2, 1), normalize=normalize)
    pooled, grad = result_and_grad(function, torch.zeros(2, 1, 4), torch.randn(2, 4))
    assert not pooled.any()
    assert grad.any() != normalize


@pytest.mark.parametrize("backend", BACKENDS)
def test_norm_below_the_floor_divides_by_the_floor(backend: Backend) -> None:
    hidden = torch.full((1, 2, 4), 1e-13, dtype=torch.float64, requires_grad=True)
    mask = torch.ones(1, 2)
    function = partial(masked_mean_pool, mask=mask, normalize=True, backend=backend)
    pooled, grad = result_and_grad(function, hidden, torch.tensor([[1.0, 2, 3, 4]]))
    torch.testing.assert_close(pooled, torch.full((1, 4), 0.1, dtype=torch.float64))
    expected = torch.tensor([0.5e12, 1e12, 1.5e12, 2e12], dtype=torch.float64)
    torch.testing.assert_close(grad, expected.expand(1, 2, 4))


@pytest.mark.parametrize("backend", BACKENDS)
def test_tokens_after_the_last_sentence_get_zero_gradient(backend: str) -> None:
    """On a GPU cu_seqlens is not read by the host, so it may end before hidden does."""
    hidden = torch.randn(300, 3, requires_grad=True)
    bounds = cumulative([5, 0])
    pooled = OPS.mean_pool_varlen_fwd(hidden, bounds, False, backend == "triton")[0]
    torch.testing.assert_close(pooled, torch.stack([hidden[:5].mean(0), torch.zeros(3)]))
    (grad,) = torch.autograd.grad(pooled.sum(), hidden)
    assert torch.equal(grad[:5], torch.full((5, 3), 0.2)) and not grad[5:].any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_norm_beyond_float32_is_no_zero_vector(backend: Backend) -> None:
    hidden = torch.full((1, 2, 3), 2e19)
    pooled = masked_mean_pool(hidden, torch.ones(1, 2), normalize=True, backend=backend)
    assert pooled.isnan().all()
    assert last_token_pool(hidden, torch.ones(1, 2), normalize=True).isnan().all()
