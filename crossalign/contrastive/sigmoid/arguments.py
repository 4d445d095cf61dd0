"""The checks of fused_sigmoid_loss, made before any pass runs, and the problem that passes get."""

from __future__ import annotations

from typing import get_args

import torch
from torch import Tensor

from crossalign.argument_checks import (
    check_dims,
    check_floating,
    check_has_data,
    check_integer,
    check_option,
    check_same_device,
    check_same_dtype,
    check_scalar,
    check_size,
    check_tensor,
    check_truth_value,
    check_weights,
    values_may_be_read,
)
from crossalign.backends import Backend
from crossalign.contrastive.choices import Gather, Reduction
from crossalign.contrastive.sigmoid.problem import SigmoidArguments, SigmoidProblem
from crossalign.contrastive.terms import scale_tensor
from crossalign.precision import accumulator

NAME = "fused_sigmoid_loss"


def check_arguments(arguments: SigmoidArguments) -> None:
    """Of this rank only, which may have no rows where it is one of a group."""
    query = arguments.query
    check_option(NAME, "reduction", arguments.reduction, get_args(Reduction))
    check_option(NAME, "gather", arguments.gather, get_args(Gather))
    check_option(NAME, "backend", arguments.backend, get_args(Backend))
    if arguments.gather == "ring" and arguments.group is None:
        raise ValueError(
            f'{NAME}: gather="ring" needs group, got group=None; pass the process group, or leave '
            "gather out"
        )
    check_truth_value(NAME, "normalize", arguments.normalize)
    _check_embeddings(query, arguments.key, allow_empty=arguments.group is not None)
    for name in ("temperature", "bias"):
        value = getattr(arguments, name)
        check_scalar(NAME, name, value, above_zero=name == "temperature")
        if isinstance(value, Tensor):
            check_has_data(NAME, name, value)
    if arguments.ids is not None:
        check_tensor(NAME, "ids", arguments.ids)
        check_integer(NAME, "ids", arguments.ids)
        check_dims(NAME, "ids", arguments.ids, "(N,)")
        check_size(NAME, "ids", arguments.ids, 0, query.shape[0], "one per pair")
        check_same_device(NAME, "ids", arguments.ids, "query", query)
    if arguments.weights is not None:
        _check_pair_weights(arguments, arguments.weights)


def _check_embeddings(query: Tensor, key: Tensor, allow_empty: bool) -> None:
    check_tensor(NAME, "query", query)
    check_tensor(NAME, "key", key)
    check_dims(NAME, "query", query, "(N, D)")
    check_dims(NAME, "key", key, "(N, D)")
    check_floating(NAME, "query", query)
    check_has_data(NAME, "query", query)
    check_size(NAME, "key", key, 0, query.shape[0], "the rows of query")
    check_size(NAME, "key", key, 1, query.shape[1], "the features of query")
    check_same_dtype(NAME, "key", key, "query", query)
    check_same_device(NAME, "key", key, "query", query)
    if query.shape[0] == 0 and not allow_empty:
        raise ValueError(f"{NAME}: query must have at least one row, got {tuple(query.shape)}")
    if query.shape[1] == 0:
        raise ValueError(f"{NAME}: query must have at least one feature, got {tuple(query.shape)}")


def _check_pair_weights(arguments: SigmoidArguments, weights: Tensor) -> None:
    check_tensor(NAME, "weights", weights)
    check_dims(NAME, "weights", weights, "(N,)")
    check_size(NAME, "weights", weights, 0, arguments.query.shape[0], "one per pair")
    check_same_device(NAME, "weights", weights, "query", arguments.query)
    check_weights(NAME, "weights", weights)
    # Of a group, another rank may have the weight; alone, the mean would be 0 / 0.
    is_own_mean = arguments.group is None and arguments.reduction == "mean"
    if is_own_mean and values_may_be_read(weights) and not bool((weights != 0).any()):
        raise ValueError(f'{NAME}: weights must not all be 0 with reduction="mean"')


def build_problem(arguments: SigmoidArguments) -> SigmoidProblem:
    """Of this process's own rows and keys."""
    query, bias = arguments.query, arguments.bias
    dtype = accumulator(query.dtype)
    if isinstance(bias, Tensor):
        bias = bias.to(device=query.device, dtype=dtype)
    else:
        bias = torch.full((), float(bias), device=query.device, dtype=dtype)
    ids = None if arguments.ids is None else arguments.ids.long()
    return SigmoidProblem(
        scale=scale_tensor(arguments.temperature, query),
        bias=bias,
        query_ids=ids,
        key_ids=ids,
        label_offset=0,
        normalize=bool(arguments.normalize),
    )
