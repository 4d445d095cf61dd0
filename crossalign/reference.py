"""Dense plain PyTorch twins of the fused ops: the specification, in tests and benchmarks alone.

Every function takes `compute_dtype`: float64 gives the truth, float32 the plain result that the
error rule calibrates on. Nothing here saves memory or time.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from crossalign.precision import NORM_FLOOR


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
    return torch.where(norm == 0, 0, vectors / norm.clamp_min(NORM_FLOOR))


def contrastive_loss(
    query: Tensor,
    key: Tensor,
    negatives: Tensor | None = None,
    *,
    temperature: float | Tensor = 0.05,
    symmetric: bool = False,
    normalize: bool = True,
    ids: Tensor | None = None,
    negative_ids: Tensor | None = None,
    same_id: str = "mask",
    negative_owner: Tensor | None = None,
    hard_negative_weight: float = 0.0,
    share_negatives: bool = True,
    weights: Tensor | None = None,
    reduction: str = "mean",
    compute_dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Dense InfoNCE: the (N, M) logits z = <q^_i, K^_j> / temperature + b[i, j] written out.

    r_i = logsumexp_j z[i, j] - mean over P(i) of z[i, j]; c_j likewise down the columns of the N
    keys; l_i = r_i, or (r_i + c_i) / 2 when symmetric; then the weighted reduction.

    Returns:
        (loss, statistics by name), all in compute_dtype.
    """
    query, key = query.to(compute_dtype), key.to(compute_dtype)
    columns = key if negatives is None else torch.cat([key, negatives.to(compute_dtype)])
    if normalize:
        query = query / query.norm(dim=1, keepdim=True).clamp_min(NORM_FLOOR)
        columns = columns / columns.norm(dim=1, keepdim=True).clamp_min(NORM_FLOOR)
    similarity_NM = query @ columns.T
    logits_NM = similarity_NM / temperature
    num_pairs, num_columns = logits_NM.shape
    excluded, positive, bias = _logit_rules(
        num_pairs,
        num_columns,
        ids,
        negative_ids,
        same_id,
        negative_owner,
        hard_negative_weight,
        share_negatives,
        query,
    )
    logits_NM = (logits_NM + bias).masked_fill(excluded, -torch.inf)
    row_terms = _terms(logits_NM, positive)
    terms = row_terms
    if symmetric:
        terms = (row_terms + _terms(logits_NM[:, :num_pairs].T, positive[:, :num_pairs].T)) / 2
    weight = torch.ones_like(terms) if weights is None else weights.to(compute_dtype)
    loss = weight * terms
    if reduction != "none":
        loss = loss.sum() / (weight.sum() if reduction == "mean" else 1)
    own = logits_NM.diagonal()
    rivals_NM = logits_NM.masked_fill(positive, -torch.inf)
    above = (rivals_NM > own[:, None]).sum(1)
    beaten_by = (rivals_NM >= own[:, None]).sum(1)
    statistics = {
        "accuracy": (beaten_by == 0).to(compute_dtype).mean(),
        "mean_reciprocal_rank": (1 / (1 + above)).to(compute_dtype).mean(),
        "positive_similarity": similarity_NM.diagonal().mean(),
        "logsumexp": logits_NM.logsumexp(1).mean(),
    }
    return loss, {name: value.detach() for name, value in statistics.items()}


def _logit_rules(
    num_pairs: int,
    num_columns: int,
    ids: Tensor | None,
    negative_ids: Tensor | None,
    same_id: str,
    negative_owner: Tensor | None,
    hard_negative_weight: float,
    share_negatives: bool,
    like: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """(excluded, positive) booleans and the added weight, each (N, M)."""
    shape = (num_pairs, num_columns)
    own = torch.eye(num_pairs, num_columns, dtype=torch.bool, device=like.device)
    excluded = torch.zeros(shape, dtype=torch.bool, device=like.device)
    bias = torch.zeros(shape, dtype=like.dtype, device=like.device)
    same = torch.zeros(shape, dtype=torch.bool, device=like.device)
    if ids is not None:
        same[:, :num_pairs] = ids[:, None] == ids[None, :]
        if negative_ids is not None:
            same[:, num_pairs:] = ids[:, None] == negative_ids[None, :]
    if negative_owner is not None:
        owned = torch.arange(num_pairs, device=like.device)[:, None] == negative_owner[None, :]
        bias[:, num_pairs:] = owned.to(like.dtype) * hard_negative_weight
        if not share_negatives:
            excluded[:, num_pairs:] = ~owned
    if same_id == "mask":
        excluded |= same & ~own
        return excluded, own, bias
    return excluded, (same | own) & ~excluded, bias


def _terms(logits: Tensor, positive: Tensor) -> Tensor:
    """(n, m) -> (n,) logsumexp of each row minus the mean logit of its positives."""
    positive_mean = torch.where(positive, logits, 0).sum(1) / positive.sum(1)
    return logits.logsumexp(1) - positive_mean


def sigmoid_loss(
    query: Tensor,
    key: Tensor,
    *,
    temperature: float | Tensor,
    bias: float | Tensor,
    normalize: bool = True,
    ids: Tensor | None = None,
    weights: Tensor | None = None,
    reduction: str = "mean",
    compute_dtype: torch.dtype = torch.float64,
) -> Tensor:
    """Dense pairwise sigmoid loss: l_i = sum_j -log sigmoid(y (<q^_i, k^_j> / temperature + bias)).

    y = 1 for j = i and for pairs of equal id, else -1; then the weighted reduction.
    """
    query, key = query.to(compute_dtype), key.to(compute_dtype)
    if normalize:
        query, key = (x / x.norm(dim=1, keepdim=True).clamp_min(1e-12) for x in (query, key))
    logits_NM = query @ key.T / temperature + bias
    is_positive = torch.eye(len(query), len(key), dtype=torch.bool, device=query.device)
    if ids is not None:
        is_positive = is_positive | (ids[:, None] == ids[None, :])
    signed_NM = torch.where(is_positive, logits_NM, -logits_NM)
    terms = -torch.nn.functional.logsigmoid(signed_NM).sum(1)
    weight = torch.ones_like(terms) if weights is None else weights.to(compute_dtype)
    loss = weight * terms
    if reduction == "none":
        return loss
    return loss.sum() / (weight.sum() if reduction == "mean" else 1)
