"""The checks of fused_contrastive_loss: every one is made before any kernel runs."""

from __future__ import annotations

import math

from torch import Tensor

from crossalign.argument_checks import (
    check_dims,
    check_floating,
    check_in_range,
    check_integer,
    check_option,
    check_positive_finite,
    check_same_device,
    check_same_dtype,
    check_size,
    check_tensor,
    check_weights,
    values_may_be_read,
)
from crossalign.contrastive.problem import LossArguments

_NAME = "fused_contrastive_loss"


def check_options(
    reduction: str, same_id: str, gather: str, backend: str, function: str = _NAME
) -> None:
    check_option(function, "reduction", reduction, ("mean", "sum", "none"))
    check_option(function, "same_id", same_id, ("mask", "positive"))
    check_option(function, "gather", gather, ("auto", "all_gather", "ring"))
    check_option(function, "backend", backend, ("auto", "triton", "torch"))


def check_arguments(arguments: LossArguments) -> None:
    """Of this rank alone, which may have no rows or negatives where it is one of a group."""
    query, negatives, ids = arguments.query, arguments.negatives, arguments.ids
    check_options(arguments.reduction, arguments.same_id, arguments.gather, arguments.backend)
    _check_embeddings(query, arguments.key, negatives, allow_empty=arguments.group is not None)
    _check_temperature(arguments.temperature)
    num_pairs = query.shape[0]
    num_negatives = 0 if negatives is None else negatives.shape[0]
    if ids is not None:
        _check_integers("ids", ids, num_pairs, "one per pair", query)
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
    _check_hard_negatives(
        arguments, may_lack_owner=arguments.group is not None and not num_negatives
    )
    if (weights := arguments.weights) is not None:
        check_tensor(_NAME, "weights", weights)
        check_dims(_NAME, "weights", weights, "(N,)")
        check_size(_NAME, "weights", weights, 0, num_pairs, "one per pair")
        check_same_device(_NAME, "weights", weights, "query", query)
        check_weights(_NAME, "weights", weights)
        # Of a group, another rank may have the weight; alone, the mean would be 0 / 0.
        is_label_mean = arguments.group is None and arguments.reduction == "mean"
        if is_label_mean and values_may_be_read(weights) and not bool((weights != 0).any()):
            raise ValueError(f'{_NAME}: weights must not all be 0 with reduction="mean"')


def _check_embeddings(
    query: Tensor, key: Tensor, negatives: Tensor | None, allow_empty: bool
) -> None:
    check_tensor(_NAME, "query", query)
    check_tensor(_NAME, "key", key)
    check_dims(_NAME, "query", query, "(N, D)")
    check_dims(_NAME, "key", key, "(N, D)")
    check_floating(_NAME, "query", query)
    check_size(_NAME, "key", key, 0, query.shape[0], "the rows of query")
    check_size(_NAME, "key", key, 1, query.shape[1], "the features of query")
    check_same_dtype(_NAME, "key", key, "query", query)
    check_same_device(_NAME, "key", key, "query", query)
    if query.shape[0] == 0 and not allow_empty:
        raise ValueError(f"{_NAME}: query must have at least one row, got {tuple(query.shape)}")
    if query.shape[1] == 0:
        raise ValueError(f"{_NAME}: query must have at least one feature, got {tuple(query.shape)}")
    if negatives is not None:
        check_tensor(_NAME, "negatives", negatives)
        check_dims(_NAME, "negatives", negatives, "(H, D)")
        check_size(_NAME, "negatives", negatives, 1, query.shape[1], "the features of query")
        check_same_dtype(_NAME, "negatives", negatives, "query", query)
        check_same_device(_NAME, "negatives", negatives, "query", query)


def _check_temperature(temperature: float | Tensor) -> None:
    if not isinstance(temperature, Tensor):
        if isinstance(temperature, bool) or not isinstance(temperature, int | float):
            raise TypeError(
                f"{_NAME}: temperature must be a float or a 0-d tensor, "
                f"got {type(temperature).__name__}"
            )
        check_positive_finite(_NAME, "temperature", temperature)
        return
    if temperature.dim() != 0:
        raise ValueError(
            f"{_NAME}: temperature must be a float or a 0-d tensor, "
            f"got shape {tuple(temperature.shape)}"
        )
    check_floating(_NAME, "temperature", temperature)
    if values_may_be_read(temperature):
        check_positive_finite(_NAME, "temperature", float(temperature.detach()))


def _check_integers(name: str, value: Tensor, size: int, why: str, query: Tensor) -> None:
    check_tensor(_NAME, name, value)
    check_integer(_NAME, name, value)
    check_dims(_NAME, name, value, "(N,)" if name == "ids" else "(H,)")
    check_size(_NAME, name, value, 0, size, why)
    check_same_device(_NAME, name, value, "query", query)


def _check_hard_negatives(arguments: LossArguments, may_lack_owner: bool) -> None:
    weight, owner = arguments.hard_negative_weight, arguments.negative_owner
    if not -math.inf < weight < math.inf:
        raise ValueError(f"{_NAME}: hard_negative_weight must be finite, got {weight}")
    if not may_lack_owner:
        check_owner_given(arguments)
    if owner is not None and arguments.negatives is None:
        raise ValueError(f"{_NAME}: negative_owner needs negatives, got negatives=None")


def check_owner_given(arguments: LossArguments) -> None:
    """Where an option speaks of owners, they must be known."""
    if arguments.negative_owner is not None:
        return
    weight, way_out = arguments.hard_negative_weight, "pass the query that owns each negative"
    if weight != 0:
        raise ValueError(
            f"{_NAME}: hard_negative_weight={weight} needs negative_owner, got None; {way_out}"
        )
    if not arguments.share_negatives:
        raise ValueError(
            f"{_NAME}: share_negatives=False needs negative_owner, got None; {way_out}"
        )
