"""Poolings written out, sentence by sentence."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from crossalign.precision import norm_divisor


def masked_mean_pool(
    hidden: Tensor,
    mask: Tensor,
    *,
    normalize: bool = False,
    compute_dtype: torch.dtype = torch.float64,
) -> Tensor:
    """pooled[b] = sum_t mask[b, t] * hidden[b, t] / sum_t mask[b, t], over the t with mask != 0.

    hidden (B, T, C), mask (B, T) -> (B, C) in compute_dtype. A row without tokens gives zeros;
    normalize divides by max(||pooled[b]||, 1e-12), and a zero vector stays zero, without gradient.
    """
    weights = mask.to(compute_dtype)[:, :, None]
    weighted = torch.where(weights != 0, weights * hidden.to(compute_dtype), 0)
    weight_sum = weights.sum(dim=1)
    pooled = weighted.sum(dim=1) / torch.where(weight_sum != 0, weight_sum, 1)
    return unit_length(pooled) if normalize else pooled


def mean_pool_varlen(
    hidden: Tensor,
    cu_seqlens: Tensor,
    *,
    normalize: bool = False,
    compute_dtype: torch.dtype = torch.float64,
) -> Tensor:
    """pooled[b] = mean of hidden[cu_seqlens[b] : cu_seqlens[b + 1]], zeros for no tokens.

    hidden (total, C), cu_seqlens (B + 1,) -> (B, C) in compute_dtype.
    """
    sentences = [
        hidden[first:last].to(compute_dtype).sum(dim=0) / max(last - first, 1)
        for first, last in pairwise(cu_seqlens.tolist())
    ]
    empty = hidden.to(compute_dtype)[:0]
    pooled = torch.stack(sentences) if sentences else empty
    return unit_length(pooled) if normalize else pooled


def unit_length(vectors: Tensor) -> Tensor:
    """x / max(||x||, 1e-12) along the last dimension; zero vectors stay zero, without gradient."""
    norm = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    return torch.where(norm == 0, 0, vectors / norm_divisor(norm))
