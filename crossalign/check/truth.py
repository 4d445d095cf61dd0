"""The contrastive loss and a sample of its gradient in float64, at sizes where N x M does not fit.

Two walks over blocks of rows: the log-sum-exps, then the gradients of a few queries and keys only,
which are exact all the same.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK_ROWS = 1024


class Truth(NamedTuple):
    loss: Tensor  # ()
    grad_query: Tensor  # (sample, D)
    grad_key: Tensor  # (sample, D)
    grad_temperature: Tensor  # ()


def sampled_truth(
    query: Tensor, key: Tensor, weights: Tensor, temperature: float, symmetric: bool, sample: Tensor
) -> Truth:
    """Of sum_i w_i l_i, everything in float64; query, key: (N, D), normalized here."""
    query, key, weights = (x.detach().double() for x in (query, key, weights))
    unit_query, unit_key = F.normalize(query, dim=1), F.normalize(key, dim=1)
    num_pairs, share = len(query), 0.5 if symmetric else 1.0
    everything = torch.arange(num_pairs, device=query.device)
    row_lse = query.new_empty(num_pairs)
    column_lse = query.new_full((num_pairs,), -torch.inf)
    for rows in torch.split(everything, BLOCK_ROWS):
        logits = unit_query[rows] @ unit_key.T / temperature
        row_lse[rows] = logits.logsumexp(1)
        column_lse = torch.logaddexp(column_lse, logits.logsumexp(0))
    positive = (unit_query * unit_key).sum(1) / temperature
    terms = share * (row_lse - positive)
    if symmetric:
        terms = terms + share * (column_lse - positive)

    def gradient(rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        """(d loss / d logits, logits) of a block."""
        logits = unit_query[rows] @ unit_key[columns].T / temperature
        grad = share * weights[rows, None] * (logits - row_lse[rows, None]).exp()
        if symmetric:
            grad += share * weights[columns] * (logits - column_lse[columns]).exp()
        is_own = rows[:, None] == columns[None, :]
        return grad - is_own * weights[rows, None], logits

    grad_temperature = query.new_zeros(())
    for rows in torch.split(everything, BLOCK_ROWS):
        grad, logits = gradient(rows, everything)
        grad_temperature -= (grad * logits).sum() / temperature
    of_query, _ = gradient(sample, everything)
    of_key, _ = gradient(everything, sample)
    return Truth(
        loss=(weights * terms).sum(),
        grad_query=_through_norm(of_query @ unit_key / temperature, query[sample]),
        grad_key=_through_norm(of_key.T @ unit_query / temperature, key[sample]),
        grad_temperature=grad_temperature,
    )


def _through_norm(grad_unit: Tensor, x: Tensor) -> Tensor:
    """Gradient of x given that of its unit vector."""
    norm = x.norm(dim=1, keepdim=True)
    unit = x / norm
    grad: Tensor = (grad_unit - unit * (grad_unit * unit).sum(1, keepdim=True)) / norm
    return grad
