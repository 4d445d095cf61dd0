"""The checks of fused_contrastive_loss, made before any kernel runs, and which backend runs it."""

from __future__ import annotations

import numbers
from typing import Any

import torch
from torch import Tensor

from crossalign.argument_checks import (
    check_dims,
    check_embeddings,
    check_floating,
    check_has_data,
    check_in_range,
    check_integer,
    check_pair_weights,
    check_same_device,
    check_same_dtype,
    check_scalar,
    check_size,
    check_tensor,
    values_may_be_read,
)
from crossalign.backends import choose_backend
from crossalign.contrastive.option_checks import check_options, check_positives_of_ids
from crossalign.contrastive.options import LossArguments

_NAME = "fused_contrastive_loss"


def checked(arguments: LossArguments) -> LossArguments:
    """The arguments of this rank, checked, with negatives (N, K, D) as (N * K, D) and owners.

    One of a group may have no rows or negatives.
    """
    arguments = _flatten_negatives(arguments)
    _check(arguments)
    return arguments


def _check(arguments: LossArguments) -> None:
    options, query, key, ids = arguments.options, arguments.query, arguments.key, arguments.ids
    check_options(_NAME, options)
    is_alone = options.group is None
    are_pairs = arguments.key_ids is None
    check_embeddings(_NAME, query, key, are_pairs=are_pairs, allow_empty=not is_alone)
    _check_negatives(query, arguments.negatives)
    check_scalar(_NAME, "temperature", arguments.temperature, above_zero=True)
    if isinstance(arguments.temperature, Tensor):
        check_has_data(_NAME, "temperature", arguments.temperature)
    num_pairs, negatives = query.shape[0], arguments.negatives
    num_negatives = 0 if negatives is None else negatives.shape[0]
    if ids is not None:
        _check_integers("ids", ids, num_pairs, "one per pair", query)
    elif options.same_id == "positive" and (is_alone or num_pairs):
        raise ValueError(
            f'{_NAME}: same_id="positive" needs ids, got ids=None; pass the integers that are '
            "equal where pairs mean the same"
        )
    if arguments.key_ids is not None:
        _check_integers("key_ids", arguments.key_ids, key.shape[0], "one per key", query)
        check_positives_of_ids(_NAME, "key_ids", options)
        if options.exclude_self:
            raise ValueError(
                f"{_NAME}: exclude_self does not go with key_ids, whose keys are other examples "
                "than the queries; leave one out"
            )
    if arguments.negative_ids is not None:
        if ids is None:
            raise ValueError(f"{_NAME}: negative_ids needs ids, got ids=None; pass both or neither")
        _check_integers(
            "negative_ids", arguments.negative_ids, num_negatives, "one per negative", query
        )
    if arguments.negative_owner is not None:
        owner = arguments.negative_owner
        _check_integers("negative_owner", owner, num_negatives, "one per negative", query)
        check_in_range(_NAME, "negative_owner", owner, num_pairs, "the queries")
        if negatives is None:
            raise ValueError(f"{_NAME}: negative_owner needs negatives, got negatives=None")
    if is_alone or num_negatives:
        check_owner_given(arguments)
    _check_guides(arguments)
    _check_per_pair(arguments)


def _flatten_negatives(arguments: LossArguments) -> LossArguments:
    """Negatives (N, K, D), each owned by its query, as (N * K, D) with negative_owner."""
    negatives = arguments.negatives
    check_tensor(_NAME, "query", arguments.query)
    if negatives is None or not isinstance(negatives, Tensor) or negatives.dim() != 3:
        return arguments
    num_pairs, per_query = negatives.shape[:2]
    if num_pairs != arguments.query.shape[0]:
        raise ValueError(
            f"{_NAME}: negatives of shape (N, K, D) must have the {arguments.query.shape[0]} rows "
            f"of query, got {tuple(negatives.shape)}; for another number per query pass (H, D) and "
            "negative_owner"
        )
    if arguments.negative_owner is not None:
        raise ValueError(
            f"{_NAME}: negative_owner does not go with negatives of shape (N, K, D), whose rows "
            "are owned by their query; leave it out or pass negatives (H, D)"
        )
    rows = torch.arange(num_pairs, device=negatives.device)
    flat: dict[str, Any] = {"negatives": negatives.flatten(0, 1)}
    for name in ("negative_ids", "guide_negatives"):
        given = getattr(arguments, name)
        if given is None:
            continue
        check_tensor(_NAME, name, given)
        if given.shape[:2] != negatives.shape[:2]:
            raise ValueError(
                f"{_NAME}: {name} must begin with the sizes {(num_pairs, per_query)} of negatives, "
                f"got shape {tuple(given.shape)}"
            )
        flat[name] = given.flatten(0, 1)
    owner = rows[:, None].expand(num_pairs, per_query).reshape(-1)
    return arguments._replace(**flat, negative_owner=owner)


def _check_negatives(query: Tensor, negatives: Tensor | None) -> None:
    if negatives is None:
        return
    given: object = negatives
    if isinstance(given, numbers.Real) or (isinstance(given, Tensor) and given.dim() == 0):
        raise TypeError(
            f"{_NAME}: negatives must be a torch.Tensor of embeddings, got the number {given}; the "
            "third argument is negatives, so pass temperature= by name"
        )
    check_tensor(_NAME, "negatives", negatives)
    if negatives.dim() != 2:
        raise ValueError(
            f"{_NAME}: negatives must have shape (H, D), or (N, K, D) for K hard negatives of each "
            f"query, got {tuple(negatives.shape)}; for another number per query pass (H, D) and "
            "negative_owner"
        )
    check_size(_NAME, "negatives", negatives, 1, query.shape[1], "the features of query")
    check_same_dtype(_NAME, "negatives", negatives, "query", query)
    check_same_device(_NAME, "negatives", negatives, "query", query)


def _check_integers(name: str, value: Tensor, size: int, why: str, query: Tensor) -> None:
    shapes = {"ids": "(N,)", "key_ids": "(M,)"}
    check_tensor(_NAME, name, value)
    check_integer(_NAME, name, value)
    check_dims(_NAME, name, value, shapes.get(name, "(H,)"))
    check_size(_NAME, name, value, 0, size, why)
    check_same_device(_NAME, name, value, "query", query)


def check_owner_given(arguments: LossArguments) -> None:
    """Where an option speaks of owners, they must be known."""
    options = arguments.options
    if arguments.negative_owner is not None:
        return
    needing = {
        "hard_negative_weight": options.hard_negative_weight != 0,
        "share_negatives": not options.share_negatives,
        "hardness_on": options.hardness != 0 and options.hardness_on == "owned",
    }
    for name, is_needing in needing.items():
        if is_needing:
            raise ValueError(
                f"{_NAME}: {name}={getattr(options, name)} needs negative_owner, got None; pass "
                "the query that owns each negative, or negatives of shape (N, K, D)"
            )


def _check_guides(arguments: LossArguments) -> None:
    query, negatives = arguments.query, arguments.negatives
    guides = (arguments.guide_query, arguments.guide_key)
    further = arguments.guide_negatives
    if guides == (None, None) and further is None:
        return
    if guides[0] is None or guides[1] is None:
        raise ValueError(
            f"{_NAME}: guide_query and guide_key must be given together, or neither of them"
        )
    check_tensor(_NAME, "guide_query", guides[0])
    if (further is None) != (negatives is None):
        raise ValueError(
            f"{_NAME}: guide_negatives must be given where negatives are, and only there"
        )
    if not arguments.has_own_key:
        raise ValueError(
            f"{_NAME}: guide_query compares with the similarity of a row's own key, which "
            "exclude_self and key_ids do without; leave it out"
        )
    sizes = {"guide_query": query, "guide_key": arguments.key, "guide_negatives": negatives}
    for name, like in sizes.items():
        guide = getattr(arguments, name)
        if guide is None or like is None:
            continue
        check_tensor(_NAME, name, guide)
        check_dims(_NAME, name, guide, "(N, G)" if name != "guide_negatives" else "(H, G)")
        check_floating(_NAME, name, guide)
        check_size(_NAME, name, guide, 0, like.shape[0], f"the rows of {name[6:]}")
        check_size(_NAME, name, guide, 1, guides[0].shape[1], "the features of guide_query")
        check_same_device(_NAME, name, guide, "query", query)


def _check_per_pair(arguments: LossArguments) -> None:
    query, weights, debias = arguments.query, arguments.weights, arguments.options.debias
    if isinstance(debias, Tensor):
        check_tensor(_NAME, "debias", debias)
        check_floating(_NAME, "debias", debias)
        if debias.dim():
            check_dims(_NAME, "debias", debias, "(N,)")
            check_size(_NAME, "debias", debias, 0, query.shape[0], "one per pair")
        check_same_device(_NAME, "debias", debias, "query", query)
        if values_may_be_read(debias) and not bool(((debias >= 0) & (debias < 1)).all()):
            raise ValueError(f"{_NAME}: debias must be at least 0 and below 1 everywhere")
    if weights is not None:
        is_own_mean = arguments.options.group is None and arguments.options.reduction == "mean"
        check_pair_weights(_NAME, weights, query, divides_by_sum=is_own_mean)


def takes_triton(arguments: LossArguments) -> bool:
    """Raises where backend="triton" is asked for and cannot run the tensors."""
    return choose_backend(_NAME, arguments.options.backend, arguments.query) == "triton"
