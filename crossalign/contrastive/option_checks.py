"""The checks of LossOptions: each option by itself, and which cannot be combined."""

from __future__ import annotations

import typing
from collections.abc import Sequence

from torch import Tensor

from crossalign.argument_checks import (
    check_finite,
    check_number,
    check_option,
    check_truth_value,
)
from crossalign.backends import Backend
from crossalign.contrastive.choices import (
    ONE_WAY,
    Direction,
    Gather,
    HardnessOn,
    MarginType,
    Partition,
    Reduction,
    SameId,
)
from crossalign.contrastive.options import LossOptions

_CLOSED_SETS = {
    "same_id": typing.get_args(SameId),
    "partition": typing.get_args(Partition),
    "hardness_on": typing.get_args(HardnessOn),
    "guide_margin_type": typing.get_args(MarginType),
    "reduction": typing.get_args(Reduction),
    "gather": typing.get_args(Gather),
    "backend": typing.get_args(Backend),
}
_DIRECTIONS = typing.get_args(Direction)
_SWITCHES = ("symmetric", "normalize", "share_negatives", "exclude_self", "return_stats")


def check_options(function: str, options: LossOptions) -> None:
    """Whatever needs no tensor to be told."""
    for name in _SWITCHES:
        check_truth_value(function, name, getattr(options, name))
    for name, allowed in _CLOSED_SETS.items():
        check_option(function, name, getattr(options, name), allowed)
    for name in ("hard_negative_weight", "hardness", "guide_margin"):
        check_finite(function, name, getattr(options, name))
    if options.false_negative_margin is not None:
        check_finite(function, "false_negative_margin", options.false_negative_margin)
    check_number(function, "label_smoothing", options.label_smoothing)
    if not 0 <= options.label_smoothing <= 1:
        raise ValueError(
            f"{function}: label_smoothing must be from 0 to 1, got {options.label_smoothing}"
        )
    if not isinstance(options.debias, Tensor):
        check_number(function, "debias", options.debias)
        if not 0 <= options.debias < 1:
            raise ValueError(
                f"{function}: debias must be at least 0 and below 1, got {options.debias}"
            )
    if options.gather == "ring" and options.group is None:
        raise ValueError(
            f'{function}: gather="ring" needs group, got None; pass the process group over whose '
            "ranks the batch is spread"
        )
    _check_directions(function, options)
    _check_positives(function, options)


def _check_directions(function: str, options: LossOptions) -> None:
    given = options.directions
    if isinstance(given, str) or not isinstance(given, Sequence):
        raise TypeError(
            f"{function}: directions must be a tuple of names such as {ONE_WAY}, got {given!r}"
        )
    for direction in given:
        check_option(function, "directions", direction, _DIRECTIONS)
    if "query_to_key" not in given or len(set(given)) != len(given):
        raise ValueError(
            f'{function}: directions must hold "query_to_key" and no name twice, got {given!r}'
        )
    if options.symmetric and set(given) != set(ONE_WAY):
        raise ValueError(
            f"{function}: symmetric=True and directions={given!r} both choose the directions; "
            'drop symmetric=True, or pass directions=("query_to_key", "key_to_query") with '
            'partition="per_direction" instead of it'
        )
    without_positive = [name for name in given if name in ("query_to_query", "key_to_key")]
    if options.partition == "per_direction" and without_positive:
        raise ValueError(
            f'{function}: partition="per_direction" does not go with {without_positive[0]!r}, '
            'which holds no positive of its own; use partition="joint"'
        )
    if options.same_id == "positive" and len(given) > 1:
        raise ValueError(
            f'{function}: same_id="positive" goes with one direction or symmetric=True, got '
            f'directions={given!r}; use same_id="mask"'
        )


def _check_positives(function: str, options: LossOptions) -> None:
    """Options that need one positive per pair, or several."""
    if options.is_debiased and not options.normalize:
        raise ValueError(
            f"{function}: debias needs normalize=True, since its floor e^(-1 / temperature) is the "
            "least that a cosine similarity can give"
        )
    if options.is_debiased and options.same_id == "positive":
        raise ValueError(
            f'{function}: debias needs one positive per query, got same_id="positive"; use '
            'same_id="mask"'
        )
    if options.exclude_self:
        check_positives_of_ids(function, "exclude_self", options)


def check_positives_of_ids(function: str, name: str, options: LossOptions) -> None:
    """What exclude_self and key_ids, with which no key is a row's own, go with."""
    if options.same_id != "positive":
        raise ValueError(
            f'{function}: {name} needs same_id="positive" and ids, which tell the positives, got '
            f"same_id={options.same_id!r}"
        )
    if options.symmetric:
        raise ValueError(
            f"{function}: {name} goes with the direction query_to_key only, got symmetric=True"
        )
    if options.false_negative_margin is not None:
        raise ValueError(
            f"{function}: {name} does not go with false_negative_margin, which compares with the "
            "similarity of a row's own key"
        )
