"""Batches that fit one chunk of a CPU: all logits at once, in the operations of plain PyTorch.

A small batch costs more in calls than in arithmetic, so it skips what only large ones and options
need: the operator, its records, the loop over chunks. While the logits are at hand the gradients
are formed: three products, symmetric too. The rules of the arithmetic are those of the chunks.

Shape suffixes: N queries, M candidates, K of them keys, D features.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from crossalign.contrastive.blocks import LARGEST_BOUND
from crossalign.contrastive.chunked import torch_logits
from crossalign.contrastive.known_gradients import with_gradients
from crossalign.contrastive.ops import refuse_twice
from crossalign.contrastive.options import LossArguments, LossOptions
from crossalign.contrastive.sides import joined
from crossalign.contrastive.terms import SOFTPLUS_THRESHOLD
from crossalign.operators.transforms import ops_are_watched, transforms_are_active
from crossalign.precision import NORM_FLOOR, accumulator, norm_divisor, without_autocast

_PLAIN = LossOptions()
_EXTRAS = LossArguments._fields[LossArguments._fields.index("ids") : -1]


def small_batch_loss(arguments: LossArguments) -> Tensor | None:
    """The loss, differentiable in embeddings and temperature; None: this is no small plain batch.

    arguments: checked, for PyTorch.
    """
    if not _is_small_and_plain(arguments):
        return None
    query, key, negatives, temperature, options = *arguments[:4], arguments.options
    tensors = [query, key, negatives, temperature if isinstance(temperature, Tensor) else None]
    needs = [x is not None and x.requires_grad and torch.is_grad_enabled() for x in tensors]
    with torch.no_grad(), without_autocast("cpu"):
        batch = _Batch.of(query, joined(key, negatives), float(temperature), options)
        # What is infinite or overflows is left to the passes that have a rule for it.
        if not math.isfinite(batch.logits_NM.sum().item()):
            return None
        loss = _loss_and_logit_gradients(batch, options)
        if not any(needs):
            return loss
        gradients = _gradients(batch, needs, key.shape[0])
    return with_gradients(loss, tensors, gradients, refuse_twice)


def _is_small_and_plain(arguments: LossArguments) -> bool:
    query, options = arguments.query, arguments.options
    num_candidates = arguments.key.shape[0]
    if arguments.negatives is not None:
        num_candidates += arguments.negatives.shape[0]
    return (
        query.device.type == "cpu"
        and num_candidates >= 2
        and query.shape[0] * num_candidates <= torch_logits.CPU_CHUNK_LOGITS
        and not options.is_debiased
        and all(getattr(arguments, name) is None for name in _EXTRAS)
        and options.reduction != "none"
        and options._replace(symmetric=False, normalize=True, reduction="mean", backend="auto")
        == _PLAIN
        and not ops_are_watched()
        and not transforms_are_active()
    )


class _Side(NamedTuple):
    """One side of the logits: rows times a factor each."""

    rows: Tensor  # (n, D) in the accumulator dtype
    factor: Tensor | None  # (n, 1) of the rows as given, where they are normalized
    is_at_floor: Tensor | None  # (n, 1) whether the norm is a constant, being too small
    scale: float  # what the factor holds beside 1 / norm

    @classmethod
    def of(cls, given: Tensor, scale: float, normalize: bool) -> _Side:
        rows = given.to(accumulator(given.dtype))
        if not normalize:
            return cls(rows if scale == 1 else rows * scale, None, None, scale)
        norms = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
        is_at_floor = norms <= NORM_FLOOR
        factor = norm_divisor(norms).reciprocal_().mul_(scale)
        return cls(rows * factor, factor, is_at_floor, scale)

    def gradient(self, of_rows: Tensor, dot: Tensor) -> Tensor:
        """Of the rows as given; dot: (n, 1) the product of each of its rows with self.rows."""
        if self.factor is None or self.is_at_floor is None:
            return of_rows if self.scale == 1 else of_rows * self.scale
        # Below the floor the divisor is a constant, so nothing is projected away.
        along = dot.masked_fill(self.is_at_floor, 0)
        along.mul_(-(self.scale**-2))
        return torch.addcmul(of_rows, self.rows, along).mul_(self.factor)


class _Batch(NamedTuple):
    """What both halves of the arithmetic read; logits_NM becomes its own gradient."""

    query: _Side
    candidates: _Side
    logits_NM: Tensor

    @classmethod
    def of(
        cls, query: Tensor, candidates: Tensor, temperature: float, options: LossOptions
    ) -> _Batch:
        scaled = _Side.of(query, 1.0 / temperature, options.normalize)
        plain = _Side.of(candidates, 1.0, options.normalize)
        return cls(scaled, plain, scaled.rows @ plain.rows.T)


def _loss_and_logit_gradients(batch: _Batch, options: LossOptions) -> Tensor:
    """() the loss; replaces the logits by its derivatives with respect to them."""
    logits_NM = batch.logits_NM
    num_pairs = logits_NM.shape[0]
    own = logits_NM.diagonal().clone()
    share = 1 / num_pairs if options.reduction == "mean" else 1.0
    logits_NM.diagonal().fill_(-torch.inf)
    is_bounded = options.normalize and batch.query.scale < LARGEST_BOUND
    if not options.symmetric:
        loss, of_own = _softmax_(logits_NM, own, share, dim=1, is_bounded=is_bounded)
    else:
        keys_NK = logits_NM[:, :num_pairs].clone()
        of_rows, of_own = _softmax_(logits_NM, own, share / 2, dim=1, is_bounded=is_bounded)
        of_columns, of_own_key = _softmax_(keys_NK, own, share / 2, dim=0, is_bounded=is_bounded)
        logits_NM[:, :num_pairs].add_(keys_NK)
        loss, of_own = of_rows + of_columns, of_own + of_own_key
    logits_NM.diagonal().copy_(of_own)
    return loss


def _softmax_(
    rest: Tensor, own: Tensor, share: float, dim: int, *, is_bounded: bool
) -> tuple[Tensor, Tensor]:
    """share * the sum of softplus(logsumexp(rest) - own), and its derivative by own; rest, in
    place, becomes that by the logits of the rest. is_bounded: no exponential overflows."""
    largest = None if is_bounded else rest.amax(dim, keepdim=True)
    total = (rest if largest is None else rest.sub_(largest)).exp_().sum(dim, keepdim=True)
    lse = total.log() if largest is None else total.log().add_(largest)
    excess = lse.flatten().sub_(own)
    # With p the probability of the own logit: 1 - p, without subtracting nearly equal numbers.
    by_rest = torch.sigmoid(excess).mul_(share)
    rest.mul_(by_rest.view_as(total) / total)
    return F.softplus(excess, threshold=SOFTPLUS_THRESHOLD).sum().mul_(share), by_rest.neg()


def _gradients(batch: _Batch, needs: list[bool], num_keys: int) -> tuple[Tensor | None, ...]:
    """For an upstream gradient of 1: by query, key, negatives and temperature, in the accumulator
    dtype; None where nobody needs it."""
    grad_NM, query, candidates = batch.logits_NM, batch.query, batch.candidates
    of_query = of_temperature = of_key = of_negatives = None
    if needs[0] or needs[3]:
        grad_ND = grad_NM @ candidates.rows
        dot = (grad_ND * query.rows).sum(1, keepdim=True)
        of_temperature = -query.scale * dot.sum() if needs[3] else None
        of_query = query.gradient(grad_ND, dot) if needs[0] else None
    if needs[1] or needs[2]:
        grad_MD = grad_NM.T @ query.rows
        dot = (grad_MD * candidates.rows).sum(1, keepdim=True)
        grad_MD = candidates.gradient(grad_MD, dot)
        of_key = grad_MD[:num_keys] if needs[1] else None
        of_negatives = grad_MD[num_keys:] if needs[2] else None
    return of_query, of_key, of_negatives, of_temperature
