"""Pooling equals its reference: values and gradients, padded and packed, on both backends."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from crossalign import reference
from crossalign.backends import Backend
from crossalign.pooling.choices import Pooling
from crossalign.pooling.functions import (
    last_token_pool,
    masked_max_pool,
    masked_mean_pool,
    mean_pool_varlen,
    pool,
)
from tests.support.pooling_cases import (
    BACKENDS,
    PACKED_CASES,
    POOL_CASES,
    RUNS,
    Run,
    cumulative,
    lengths_mask,
    result_and_grad,
)
from tests.support.tolerances import assert_within_rule

POOLS = {"mean": masked_mean_pool, "last": last_token_pool, "max": masked_max_pool}
BOTH = pytest.mark.parametrize("normalize", [False, True], ids=["raw", "unit"])


def assert_equals_reference(
    function: Callable[[Tensor], Tensor],
    specification: Callable[..., Tensor],
    hidden: Tensor,
    num_sentences: int,
) -> None:
    """Result and gradient, under an upstream gradient that differs in every element."""
    dtype = hidden.dtype
    upstream = torch.randn(num_sentences, hidden.shape[-1]).to(hidden)
    pooled, grad = result_and_grad(function, hidden, upstream)
    assert pooled.dtype == grad.dtype == dtype
    truth, grad_truth = result_and_grad(
        partial(specification, compute_dtype=torch.float64), hidden.double(), upstream
    )
    arithmetic = torch.float64 if dtype == torch.float64 else torch.float32
    plain, grad_plain = result_and_grad(
        partial(specification, compute_dtype=arithmetic), hidden.to(arithmetic), upstream
    )
    assert_within_rule(pooled, truth, plain.to(dtype), "pooled")
    assert_within_rule(grad, grad_truth, grad_plain.to(dtype), "gradient")


# Equals reference


@BOTH
@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("case", POOL_CASES)
def test_masked_mean_equals_reference(case: str, run: Run, normalize: bool) -> None:
    shape = POOL_CASES[case]
    hidden = shape.make_hidden(run.dtype).to(run.device)
    mask = shape.mask(shape.num_tokens).to(run.device)
    assert_equals_reference(
        lambda h: masked_mean_pool(h, mask, normalize=normalize, backend=run.backend),
        lambda h, **options: reference.masked_mean_pool(h, mask, normalize=normalize, **options),
        hidden,
        shape.num_sentences,
    )


@BOTH
@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("case", PACKED_CASES)
def test_packed_mean_equals_reference(case: str, run: Run, normalize: bool) -> None:
    lengths, width = PACKED_CASES[case]
    hidden = (torch.randn(sum(lengths), width) + 0.5).to(run.device, run.dtype)
    bounds = cumulative(lengths).to(run.device)
    assert_equals_reference(
        lambda h: mean_pool_varlen(h, bounds, normalize=normalize, backend=run.backend),
        lambda h, **options: reference.mean_pool_varlen(h, bounds, normalize=normalize, **options),
        hidden,
        len(lengths),
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_packed_equals_padded(backend: Backend) -> None:
    lengths = [5, 1, 0, 9]
    padded = torch.randn(4, 9, 6)
    mask = lengths_mask(*lengths)(9)
    packed = mean_pool_varlen(padded[mask], cumulative(lengths, torch.int64), backend=backend)
    torch.testing.assert_close(packed, masked_mean_pool(padded, mask, backend=backend))


@BOTH
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_last_token_is_the_last_unmasked_one(
    dtype: torch.dtype, side: str, normalize: bool
) -> None:
    hidden = torch.randn(3, 6, 5, dtype=dtype, requires_grad=True)
    mask = lengths_mask(6, 1, 4)(6).long()
    last = [5, 0, 3]
    if side == "left":
        mask, last = mask.flip(1), [5, 5, 5]
    pooled = last_token_pool(hidden, mask, normalize=normalize)
    expected = hidden[torch.arange(3), torch.tensor(last)]
    if normalize:
        expected = reference.unit_length(expected.double()).to(dtype)
    torch.testing.assert_close(pooled, expected)
    (grad,) = torch.autograd.grad(pooled.sum(), hidden)
    assert {tuple(i) for i in grad.abs().sum(2).nonzero().tolist()} == set(enumerate(last))


def test_last_token_stands_behind_holes() -> None:
    hidden = torch.arange(5.0)[None, :, None]
    assert last_token_pool(hidden, torch.tensor([[1, 0, 0.5, 0, 0]])).item() == 2


@BOTH
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_maximum_looks_at_unmasked_tokens_only(dtype: torch.dtype, normalize: bool) -> None:
    hidden = -torch.rand(3, 7, 5).add(0.1).to(dtype).requires_grad_()
    mask = lengths_mask(7, 1, 4)(7)
    pooled = masked_max_pool(hidden, mask, normalize=normalize)
    expected = torch.stack([hidden[0].amax(0), hidden[1, 0], hidden[2, :4].amax(0)])
    if normalize:
        expected = reference.unit_length(expected.double()).to(dtype)
    assert (pooled < 0).all()
    torch.testing.assert_close(pooled, expected)
    (grad,) = torch.autograd.grad(masked_max_pool(hidden, mask).sum(), hidden)
    assert not grad[~mask].any()
    assert (grad.sum(1) == 1).all()


@pytest.mark.parametrize("name", POOLS)
def test_pool_chooses_by_name(name: Pooling) -> None:
    hidden, mask = torch.randn(2, 4, 3), lengths_mask(4, 2)(4)
    expected = POOLS[name](hidden, mask, normalize=True)
    assert torch.equal(pool(hidden, mask, name, normalize=True), expected)
    assert torch.equal(pool(hidden, mask), masked_mean_pool(hidden, mask))


# Gradient


@BOTH
@pytest.mark.parametrize("backend", BACKENDS)
def test_masked_mean_gradcheck(backend: Backend, normalize: bool) -> None:
    hidden = torch.randn(3, 4, 2, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[1, 1, 0.5, 2], [0, 0, 0, 0], [0, 3, 0, 0]])
    function = partial(masked_mean_pool, mask=mask, normalize=normalize, backend=backend)
    assert gradcheck(function, (hidden,), fast_mode=backend == "triton")


@BOTH
@pytest.mark.parametrize("backend", BACKENDS)
def test_packed_mean_gradcheck(backend: Backend, normalize: bool) -> None:
    hidden = torch.randn(6, 2, dtype=torch.float64, requires_grad=True)
    bounds = cumulative([4, 0, 2])
    function = partial(mean_pool_varlen, cu_seqlens=bounds, normalize=normalize, backend=backend)
    assert gradcheck(function, (hidden,), fast_mode=backend == "triton")


@BOTH
@pytest.mark.parametrize("name", ["last", "max"])
def test_last_and_max_gradcheck(name: str, normalize: bool) -> None:
    hidden = torch.randn(3, 4, 3, dtype=torch.float64, requires_grad=True)
    function = partial(POOLS[name], mask=lengths_mask(3, 0, 1)(4), normalize=normalize)
    assert gradcheck(function, (hidden,))


@pytest.mark.parametrize("backend", BACKENDS)
def test_expanded_upstream_gradient_is_read_right(backend: Backend) -> None:
    """sum() sends back one number expanded to (B, C), a transpose sends back strides."""
    hidden = torch.randn(2, 3, 4, requires_grad=True)
    mask = lengths_mask(3, 2)(3)
    (grad,) = torch.autograd.grad(masked_mean_pool(hidden, mask, backend=backend).sum(), hidden)
    torch.testing.assert_close(grad, (mask / mask.sum(1, keepdim=True))[:, :, None].expand(2, 3, 4))
    upstream = torch.randn(4, 2).T
    pooled = masked_mean_pool(hidden, mask, normalize=True, backend=backend)
    (strided,) = torch.autograd.grad(pooled, hidden, upstream, retain_graph=True)
    (dense,) = torch.autograd.grad(pooled, hidden, upstream.contiguous())
    assert torch.equal(strided, dense)


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_gradient_flows_to_the_mask(backend: Backend) -> None:
    hidden = torch.randn(2, 3, 4, requires_grad=True)
    mask = torch.ones(2, 3, requires_grad=True)
    masked_mean_pool(hidden, mask, backend=backend).sum().backward()
    assert hidden.grad is not None and mask.grad is None


ONE_EACH = """
import os, torch  # which all of the processes share
x = torch.ones(2, 2, 3)
calls = {
    "masked_mean_pool": (x, x[..., 0]),
    "gather_negatives": (x[0],),
    "fused_contrastive_loss": (x[0], x[1]),
}
for name, arguments in calls.items():
    child = os.fork()
    if not child:
        import crossalign
        getattr(crossalign, name)(*arguments)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, name
"""


def test_each_public_function_registers_its_own_ops() -> None:
    """Pooling ran only where something else had imported the module that registers its ops."""
    command = [sys.executable, "-c", ONE_EACH]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
