"""The pairwise sigmoid loss written out."""

from __future__ import annotations

import torch
from torch import Tensor

from crossalign.reference.contrastive import unit_rows


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
        query, key = unit_rows(query), unit_rows(key)
    similarity_NM = query @ key.T
    # An infinite logit would be a pair that costs nothing.
    logits_NM = similarity_NM.masked_fill(similarity_NM.isinf(), torch.nan) / temperature + bias
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
