"""Sentence vectors from token vectors: mean, last token and maximum, padded and packed.

Shapes: B sentences, T tokens, C features. The means run in the registered ops of pooling_ops, on
Triton or on chunked PyTorch; last token and maximum are plain differentiable PyTorch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from crossalign.argument_checks import (
    check_dims,
    check_floating,
    check_integer,
    check_option,
    check_same_device,
    check_size,
    check_tensor,
    check_truth_value,
    check_weights,
    values_may_be_read,
)
from crossalign.backends import Backend, choose_backend
from crossalign.pooling.choices import POOLINGS, Pooling
from crossalign.pooling.ops import packed_mean, padded_mean
from crossalign.precision import accumulator, norm_divisor


def masked_mean_pool(
    hidden: Tensor, mask: Tensor, *, normalize: bool = False, backend: Backend = "auto"
) -> Tensor:
    """Weighted mean of the token vectors of each sentence.

    pooled[b] = sum_t mask[b, t] * hidden[b, t] / sum_t mask[b, t]

    Args:
        hidden: (B, T, C) float16, bfloat16, float32 or float64; any strides.
        mask: (B, T) bool, integer or float weights >= 0; 0 skips the token, whatever is there
            (NaN included). Same device as hidden. Gets no gradient.
        normalize: scale each result to unit length.
        backend: "auto", "triton" or "torch".

    Returns:
        (B, C), dtype of hidden. A sentence without tokens gives zeros and a zero gradient.

    Raises:
        TypeError: hidden or mask is not a tensor, or normalize neither True nor False.
        ValueError: shapes or devices do not fit, the named backend cannot run these tensors, or a
            weight is negative or not finite (read on the CPU, elsewhere if CROSSALIGN_CHECK=1).

    Cost: reads the unmasked tokens once, writes B*C; sums in float32 (float64 for float64) and
    copies no hidden state. Deterministic. Differentiating twice raises.
    Source: reference.masked_mean_pool is the specification.

    Examples:
        >>> hidden = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [9.0, 9.0]]])
        >>> masked_mean_pool(hidden, torch.tensor([[1, 1, 0]]))
        tensor([[2., 3.]])
    """
    _check_padded("masked_mean_pool", hidden, mask, normalize)
    use_triton = choose_backend("masked_mean_pool", backend, hidden) == "triton"
    pooled: Tensor
    pooled, _, _ = padded_mean(hidden, mask, bool(normalize), use_triton)
    return pooled


def mean_pool_varlen(
    hidden: Tensor, cu_seqlens: Tensor, *, normalize: bool = False, backend: Backend = "auto"
) -> Tensor:
    """Mean of the token vectors of each sentence of a packed batch.

    pooled[b] = mean of hidden[cu_seqlens[b] : cu_seqlens[b + 1]]

    Args:
        hidden: (total, C) float16, bfloat16, float32 or float64; any strides.
        cu_seqlens: (B + 1,) int32 or int64: 0, then where each sentence ends; the last is total.
        normalize: as for masked_mean_pool.
        backend: as for masked_mean_pool.

    Returns:
        (B, C), dtype of hidden. A sentence without tokens gives zeros.

    Raises:
        TypeError: hidden or cu_seqlens is not a tensor, cu_seqlens holds no int32 or int64, or
            normalize is neither True nor False.
        ValueError: shapes or devices do not fit, the named backend cannot run these tensors, or
            cu_seqlens does not rise from 0 to total (read on the CPU, elsewhere if
            CROSSALIGN_CHECK=1; unread, tokens after its last value belong to no sentence).

    Cost: as masked_mean_pool. Deterministic. Differentiating twice raises.
    Source: reference.mean_pool_varlen is the specification.

    Examples:
        >>> hidden = torch.tensor([[1.0], [3.0], [5.0]])
        >>> mean_pool_varlen(hidden, torch.tensor([0, 2, 3], dtype=torch.int32))
        tensor([[2.],
                [5.]])
    """
    function = "mean_pool_varlen"
    check_truth_value(function, "normalize", normalize)
    check_tensor(function, "hidden", hidden)
    check_tensor(function, "cu_seqlens", cu_seqlens)
    check_dims(function, "hidden", hidden, "(total, C)")
    check_floating(function, "hidden", hidden)
    check_dims(function, "cu_seqlens", cu_seqlens, "(B + 1,)")
    check_same_device(function, "cu_seqlens", cu_seqlens, "hidden", hidden)
    _check_cu_seqlens(function, cu_seqlens, hidden.shape[0])
    use_triton = choose_backend(function, backend, hidden) == "triton"
    pooled: Tensor
    pooled, _, _ = packed_mean(hidden, cu_seqlens, bool(normalize), use_triton)
    return pooled


def last_token_pool(hidden: Tensor, mask: Tensor, *, normalize: bool = False) -> Tensor:
    """Vector of each sentence's last token, the last position whose mask is not 0.

    Padding may be left, right or between; it never matters, NaN included.

    Args:
        hidden: (B, T, C) floating point; any strides.
        mask: (B, T) bool, integer or float >= 0; not 0 marks a token. Same device as hidden.
        normalize: scale each result to unit length.

    Returns:
        (B, C), dtype of hidden. A sentence without tokens gives zeros and a zero gradient.

    Raises:
        TypeError, ValueError: as masked_mean_pool.

    Cost: reads the mask and B*C; the gradient is as large as hidden. Deterministic.

    Examples:
        >>> hidden = torch.tensor([[[1.0], [3.0], [9.0]]])
        >>> last_token_pool(hidden, torch.tensor([[1, 1, 0]]))
        tensor([[3.]])
    """
    _check_padded("last_token_pool", hidden, mask, normalize)
    if hidden.shape[1] == 0:
        return hidden.sum(dim=1)
    is_token = mask != 0
    index = torch.arange(mask.shape[1], device=mask.device)
    last = torch.where(is_token, index, 0).amax(dim=1)
    sentence = torch.arange(hidden.shape[0], device=hidden.device)
    return _finish_selected(hidden[sentence, last], is_token, normalize)


def masked_max_pool(hidden: Tensor, mask: Tensor, *, normalize: bool = False) -> Tensor:
    """Largest value of each feature over the tokens of each sentence.

    Only tokens count: a sentence of negative values keeps its negative maximum, and padding never
    matters, NaN included. Tokens that tie share the gradient.

    Args:
        hidden: (B, T, C) floating point; any strides.
        mask: (B, T) bool, integer or float >= 0; not 0 marks a token. Same device as hidden.
        normalize: scale each result to unit length.

    Returns:
        (B, C), dtype of hidden. A sentence without tokens gives zeros and a zero gradient.

    Raises:
        TypeError, ValueError: as masked_mean_pool.

    Cost: one copy of hidden forward. Deterministic.

    Examples:
        >>> hidden = torch.tensor([[[1.0], [3.0], [9.0]]])
        >>> masked_max_pool(hidden, torch.tensor([[1, 1, 0]]))
        tensor([[3.]])
    """
    _check_padded("masked_max_pool", hidden, mask, normalize)
    if hidden.shape[1] == 0:
        return hidden.sum(dim=1)
    is_token = mask != 0
    highest = hidden.masked_fill(~is_token[:, :, None], float("-inf")).amax(dim=1)
    return _finish_selected(highest, is_token, normalize)


def pool(
    hidden: Tensor, mask: Tensor, mode: Pooling = "mean", *, normalize: bool = False
) -> Tensor:
    """masked_mean_pool, last_token_pool or masked_max_pool, by name.

    Args:
        hidden: as for these functions.
        mask: as for these functions.
        mode: "mean", "last" or "max".
        normalize: as for these functions.

    Raises:
        TypeError, ValueError: as these functions; ValueError for another mode.

    Examples:
        >>> hidden = torch.tensor([[[1.0], [3.0]]])
        >>> pool(hidden, torch.tensor([[1, 1]]), "mean")
        tensor([[2.]])
    """
    check_option("pool", "mode", mode, POOLINGS)
    functions = {"mean": masked_mean_pool, "last": last_token_pool, "max": masked_max_pool}
    return functions[mode](hidden, mask, normalize=normalize)


def _check_padded(function: str, hidden: Tensor, mask: Tensor, normalize: bool) -> None:
    check_truth_value(function, "normalize", normalize)
    check_tensor(function, "hidden", hidden)
    check_tensor(function, "mask", mask)
    check_dims(function, "hidden", hidden, "(B, T, C)")
    check_floating(function, "hidden", hidden)
    check_dims(function, "mask", mask, "(B, T)")
    check_size(function, "mask", mask, 0, hidden.shape[0], "B of hidden")
    check_size(function, "mask", mask, 1, hidden.shape[1], "T of hidden")
    check_same_device(function, "mask", mask, "hidden", hidden)
    if mask.is_floating_point():
        check_floating(function, "mask", mask)
    elif mask.dtype != torch.bool:
        check_integer(function, "mask", mask)
    check_weights(function, "mask", mask)


def _check_cu_seqlens(function: str, cu_seqlens: Tensor, total: int) -> None:
    if cu_seqlens.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"{function}: cu_seqlens must hold int32 or int64, got {cu_seqlens.dtype}")
    if cu_seqlens.shape[0] == 0:
        raise ValueError(f"{function}: cu_seqlens must hold at least the leading 0, got no element")
    if values_may_be_read(cu_seqlens):
        bounds = cu_seqlens.tolist()
        if bounds[0] != 0 or bounds[-1] != total or bounds != sorted(bounds):
            raise ValueError(
                f"{function}: cu_seqlens must rise from 0 to {total}, the tokens of hidden, "
                f"got {bounds if len(bounds) <= 9 else [*bounds[:4], '...', *bounds[-4:]]}"
            )


def _finish_selected(pooled: Tensor, is_token: Tensor, normalize: bool) -> Tensor:
    """Zeros for sentences without tokens; unit length in the accumulator dtype if asked for."""
    pooled = torch.where(is_token.any(dim=1, keepdim=True), pooled, 0)
    if not normalize:
        return pooled
    vectors = pooled.to(accumulator(pooled.dtype))
    norm = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
    return (vectors * torch.where(norm == 0, 0, 1 / norm_divisor(norm))).to(pooled.dtype)
