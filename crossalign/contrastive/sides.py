"""Keys and negatives: two arguments of an op, one matrix of candidates inside of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from crossalign.contrastive.problem import GradientNeeds
from crossalign.precision import concatenated


class Sides(NamedTuple):
    """The embeddings that an op is given."""

    query: Tensor
    key: Tensor
    negatives: Tensor | None


class NeededSides(NamedTuple):
    """Whose gradient an op is to form."""

    need_query: bool
    need_key: bool
    need_negatives: bool
    need_scale: bool


class SideGradients(NamedTuple):
    """What is not needed has no rows."""

    grad_query: Tensor
    grad_key: Tensor
    grad_negatives: Tensor
    grad_scale: Tensor


def joined(key: Tensor, negatives: Tensor | None) -> Tensor:
    """(M, D): the candidates."""
    return key if negatives is None else concatenated([key, negatives])


def separated(of_key: Tensor, of_negatives: Tensor) -> tuple[Tensor, Tensor]:
    """Two parts of one matrix, contiguous and without common storage, as outputs of an op must be;
    copied only if both have rows."""
    if of_negatives.shape[0] == 0:
        return of_key.contiguous(), of_negatives.new_empty(of_negatives.shape)
    if of_key.shape[0] == 0:
        return of_key.new_empty(of_key.shape), of_negatives.contiguous()
    return of_key.clone(), of_negatives.clone()


def needs_of(needs_grad: Sequence[bool], key: Tensor, negatives: Tensor | None) -> GradientNeeds:
    """needs_grad: of query, key, negatives and scale."""
    need_query, need_key, need_negatives, need_scale = needs_grad
    first = last = key.shape[0]
    if need_key:
        first = 0
    if need_negatives and negatives is not None:
        last += negatives.shape[0]
    return GradientNeeds(need_query, first < last, need_scale, slice(first, last))
