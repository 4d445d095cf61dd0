"""The checks of fused_sigmoid_loss, made before any pass runs, and the problem that passes get."""

from __future__ import annotations

from typing import get_args

import torch
from torch import Tensor

from crossalign.argument_checks import (
    check_dims,
    check_embeddings,
    check_has_data,
    check_integer,
    check_option,
    check_pair_weights,
    check_same_device,
    check_scalar,
    check_size,
    check_tensor,
    check_truth_value,
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
    is_sharded = arguments.group is not None
    check_embeddings(NAME, query, arguments.key, are_pairs=True, allow_empty=is_sharded)
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
        is_own_mean = not is_sharded and arguments.reduction == "mean"
        check_pair_weights(NAME, arguments.weights, query, divides_by_sum=is_own_mean)


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
