"""Shapes, masks and dtypes that tests share; each with the reason it is there."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

# The interpreter holds bfloat16 as raw bits and computes wrongly on them.
INTERPRETED_DTYPES = (torch.float32, torch.float16, torch.float64)
DTYPES = (*INTERPRETED_DTYPES, torch.bfloat16)

needs_interpreter = [
    pytest.mark.skipif(
        importlib.util.find_spec("triton") is None, reason="the triton package is not installed"
    ),
    pytest.mark.skipif(
        os.environ.get("TRITON_INTERPRET") != "1",
        reason="kernels are compiled in this process; TRITON_INTERPRET=1 runs them on the CPU",
    ),
]


class Run(NamedTuple):
    """Where a case runs."""

    backend: Any
    device: str
    dtype: torch.dtype


def _run(backend: str, device: str, dtype: torch.dtype) -> object:
    marks = [pytest.mark.cuda] if device == "cuda" else []
    if backend == "triton" and device == "cpu":
        marks = needs_interpreter
    name = f"{backend}-{device}-{str(dtype).removeprefix('torch.')}"
    return pytest.param(Run(backend, device, dtype), id=name, marks=marks)


RUNS = [
    _run(backend, device, dtype)
    for device in ("cpu", "cuda")
    for backend in ("torch", "triton")
    for dtype in (INTERPRETED_DTYPES if (backend, device) == ("triton", "cpu") else DTYPES)
]
BACKENDS = [pytest.param("torch"), pytest.param("triton", marks=needs_interpreter)]


# Pooling: B sentences, T tokens, C features.


def lengths_mask(*lengths: int) -> Callable[[int], Tensor]:
    """Right padding after each length."""
    return lambda num_tokens: torch.arange(num_tokens) < torch.tensor(lengths)[:, None]


def left_padded(*lengths: int) -> Callable[[int], Tensor]:
    """Left padding, as the int64 that tokenizers give."""
    return lambda num_tokens: lengths_mask(*lengths)(num_tokens).flip(1).long()


def float_weights(num_sentences: int) -> Callable[[int], Tensor]:
    """Weights of very different size; about a third of them 0."""

    def build(num_tokens: int) -> Tensor:
        weights = torch.rand(num_sentences, num_tokens) ** 4 * 100
        return torch.where(torch.rand_like(weights) < 0.3, 0, weights)

    return build


class PoolCase(NamedTuple):
    num_sentences: int
    num_tokens: int
    width: int
    mask: Callable[[int], Tensor]

    def make_hidden(self, dtype: torch.dtype) -> Tensor:
        # A mean that is not 0: rounding a mean of nothing but noise hides errors.
        return (torch.randn(self.num_sentences, self.num_tokens, self.width) + 0.5).to(dtype)


POOL_CASES = {
    # Whole tiles in every dimension: no tail is masked off.
    "whole_tiles": PoolCase(2, 64, 256, lengths_mask(64, 32)),
    # A tail in every dimension; an empty sentence between full ones.
    "ragged_with_empty": PoolCase(4, 37, 19, lengths_mask(37, 0, 1, 30)),
    # One token beyond a block, left-padded by more than a block: the first block is skipped.
    "left_padded": PoolCase(3, 65, 24, left_padded(65, 20, 33)),
    # Holes inside the sentence, weights that are no 0 or 1.
    "float_weights": PoolCase(3, 50, 33, float_weights(3)),
    # Widths off the widest tile (256 features of 2 bytes, 128 of 4, 64 of 8) by one.
    "width_63": PoolCase(1, 3, 63, lengths_mask(2)),
    "width_65": PoolCase(1, 3, 65, lengths_mask(2)),
    "width_127": PoolCase(1, 3, 127, lengths_mask(2)),
    "width_129": PoolCase(1, 3, 129, lengths_mask(2)),
    "width_255": PoolCase(1, 3, 255, lengths_mask(2)),
    "width_257": PoolCase(1, 3, 257, lengths_mask(2)),
    # More tokens than one program takes (512): three splits, the last short, one sentence all in
    # the first.
    "split": PoolCase(2, 1030, 5, lengths_mask(1030, 7)),
    # One of everything.
    "single_token": PoolCase(1, 1, 1, lengths_mask(1)),
}

# Packed sentences: their lengths, and the width.
PACKED_CASES = {
    "whole_tiles": ([64, 32], 256),
    # Empty sentences first, last and in the middle.
    "ragged_with_empty": ([0, 37, 0, 1, 30, 0], 19),
    "width_129": ([2, 1], 129),
    # On average 522 tokens, so two splits, of which most sentences leave one without a token.
    "split": ([1030, 14], 5),
    "single_token": ([1], 1),
}


def cumulative(lengths: list[int], dtype: torch.dtype = torch.int32) -> Tensor:
    """cu_seqlens: 0, then where each sentence ends."""
    return torch.tensor([0, *lengths]).cumsum(0).to(dtype)


def result_and_grad(
    function: Callable[[Tensor], Tensor], hidden: Tensor, upstream: Tensor
) -> tuple[Tensor, Tensor]:
    leaf = hidden.detach().requires_grad_()
    pooled = function(leaf)
    (grad,) = torch.autograd.grad(pooled, leaf, upstream.to(pooled.dtype))
    return pooled.detach(), grad
