"""Row terms of the fused loss put together: what some hosts ask for is no single call of it.

A row term is t_i = log(e^z_i + S_i) - z_i, with z_i the positive's logit and S_i the sum of e^logit
over the others: e^t_i - 1 is S_i relative to the positive.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from crossalign.contrastive.loss import fused_contrastive_loss
from crossalign.precision import concatenated


def union(one: Tensor, other: Tensor) -> Tensor:
    """(N,) terms of the same positives against the candidates of both: e^t - 1 add up."""
    most, least = torch.maximum(one, other), torch.minimum(one, other)
    return most + torch.log1p(torch.exp(least - most) - torch.exp(-most))


def log_sum_of_others(
    query: Tensor, candidates: Tensor, ids: Tensor, candidate_ids: Tensor, temperature: float
) -> Tensor:
    """(N,) log of the sum of e^(dot product / temperature) over the candidates of another id.

    query: (N, D), candidates: (R, D); a row without such a candidate gets a very low value.
    """
    rows = query.shape[0]
    # One more coordinate gives all N stand-in keys the same logit, far below the candidates'.
    longest = query.detach().norm(dim=1).amax() * candidates.detach().norm(dim=1).amax()
    floor = -(longest.float() + (16 + torch.tensor(float(rows)).log()) * temperature)
    floor = floor.to(query.dtype)
    zeros, ones = query.new_zeros(rows, query.shape[1]), query.new_ones(rows, 1)
    terms = fused_contrastive_loss(
        concatenated([query, ones], dim=1),
        concatenated([zeros, floor * ones], dim=1),
        concatenated([candidates, candidates.new_zeros(candidates.shape[0], 1)], dim=1),
        ids=ids,
        negative_ids=candidate_ids,
        normalize=False,
        temperature=temperature,
        reduction="none",
    )
    # Keys of equal id are left out, except the row's own; so many remain.
    _, group, sizes = torch.unique(ids, return_inverse=True, return_counts=True)
    remaining = (rows - sizes[group] + 1).to(terms.dtype)
    others = 1 - remaining * torch.exp(-terms)
    least = torch.finfo(terms.dtype).tiny
    log_sum: Tensor = floor.to(terms.dtype) / temperature + terms + others.clamp_min(least).log()
    return log_sum


def mean_over_ranks(terms: Tensor, group: Any) -> Tensor:
    """The mean of this process; with a group W * this rank's share of the mean over all rows."""
    if group is None:
        return terms.mean()
    rows = torch.tensor(float(terms.shape[0]), device=terms.device, dtype=torch.float64)
    dist.all_reduce(rows, group=group)
    return terms.sum() * (dist.get_world_size(group) / rows).to(terms.dtype)
