"""One function per kind of argument check: builds the message, raises.

Every message reads: function: argument must be what was expected, got what came; the way out.
"""

from __future__ import annotations

import math
import numbers
import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from crossalign.operators.transforms import is_batched, ops_are_watched

FLOATING_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
INTEGER_DTYPES = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def values_may_be_read(tensor: Tensor) -> bool:
    """Reading a CUDA tensor's values stalls the host, so it is done only when asked for."""
    if ops_are_watched() or is_batched(tensor):
        return False
    return tensor.device.type == "cpu" or os.environ.get("CROSSALIGN_CHECK") == "1"


def check_tensor(function: str, name: str, value: Any) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{function}: {name} must be a torch.Tensor, got {type(value).__name__}")
    if value.is_nested:
        raise ValueError(
            f"{function}: {name} must be a dense tensor, got a nested one; pad it with "
            ".to_padded_tensor(), or concatenate its parts"
        )
    if value.layout != torch.strided:
        raise ValueError(
            f"{function}: {name} must be a dense tensor, got {value.layout}; call .to_dense()"
        )


def check_has_data(function: str, name: str, tensor: Tensor) -> None:
    if tensor.device.type == "meta":
        raise ValueError(
            f"{function}: {name} must hold data, got a meta tensor; move it to a device with "
            "torch.empty_like(x, device=...) and fill it"
        )


def check_dims(function: str, name: str, tensor: Tensor, expected: str) -> None:
    """expected: the shape in words, such as "(N, D)"; its commas tell the number of dimensions."""
    dims = len([part for part in expected.strip("()").split(",") if part.strip()])
    if tensor.dim() != dims:
        raise ValueError(
            f"{function}: {name} must have shape {expected}, got {tuple(tensor.shape)} "
            f"({tensor.dim()} dimensions)"
        )


def check_size(function: str, name: str, tensor: Tensor, dim: int, expected: int, why: str) -> None:
    if tensor.shape[dim] != expected:
        raise ValueError(
            f"{function}: {name} must have size {expected} in dimension {dim} ({why}), "
            f"got shape {tuple(tensor.shape)}"
        )


def check_floating(function: str, name: str, tensor: Tensor) -> None:
    if tensor.dtype not in FLOATING_DTYPES:
        raise ValueError(
            f"{function}: {name} must be float32, bfloat16, float16 or float64, got {tensor.dtype}"
        )


def check_integer(function: str, name: str, tensor: Tensor) -> None:
    if tensor.dtype not in INTEGER_DTYPES:
        raise TypeError(f"{function}: {name} must hold integers, got {tensor.dtype}")


def check_same_dtype(function: str, name: str, tensor: Tensor, other: str, like: Tensor) -> None:
    if tensor.dtype != like.dtype:
        raise ValueError(
            f"{function}: {name} must have the dtype of {other} ({like.dtype}), got {tensor.dtype}"
        )


def check_same_device(function: str, name: str, tensor: Tensor, other: str, like: Tensor) -> None:
    if tensor.device != like.device:
        raise ValueError(
            f"{function}: {name} must be on the device of {other} ({like.device}), "
            f"got {tensor.device}"
        )


def check_option(function: str, name: str, value: Any, allowed: Sequence[str]) -> None:
    if value not in allowed:
        options = ", ".join(repr(option) for option in allowed)
        raise ValueError(f"{function}: {name} must be one of {options}, got {value!r}")


def check_number(function: str, name: str, value: Any) -> None:
    """Python's numbers and NumPy's, but no truth values."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{function}: {name} must be a number, got {type(value).__name__}")


def check_scalar(function: str, name: str, value: Any, *, above_zero: bool) -> None:
    """A finite number or 0-d tensor; a tensor's value is read where that stalls nothing."""
    if isinstance(value, Tensor):
        check_tensor(function, name, value)
        if value.dim() != 0:
            raise ValueError(
                f"{function}: {name} must be a number or a 0-d tensor, "
                f"got shape {tuple(value.shape)}"
            )
        check_floating(function, name, value)
        if not values_may_be_read(value):
            return
        value = float(value.detach())
    elif isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(
            f"{function}: {name} must be a number or a 0-d tensor, got {type(value).__name__}"
        )
    if above_zero:
        check_positive_finite(function, name, value)
    else:
        check_finite(function, name, value)


def check_integer_number(function: str, name: str, value: Any) -> None:
    """Python's integers and NumPy's, but no truth values."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{function}: {name} must be an integer, got {type(value).__name__}")


def check_finite(function: str, name: str, value: Any) -> None:
    check_number(function, name, value)
    if not -math.inf < value < math.inf:
        raise ValueError(f"{function}: {name} must be finite, got {value}")


def check_truth_value(function: str, name: str, value: Any) -> None:
    """True or False, also NumPy's: a string or a number would count as True."""
    if type(value).__name__ not in ("bool", "bool_"):
        raise TypeError(
            f"{function}: {name} must be True or False, got {value!r} ({type(value).__name__})"
        )


def check_positive_finite(function: str, name: str, value: Any) -> None:
    check_number(function, name, value)
    if not 0 < value < math.inf:
        raise ValueError(f"{function}: {name} must be a finite number above 0, got {value}")


def check_weights(function: str, name: str, weights: Tensor) -> None:
    """Weights must be finite and not negative; read only where that does not stall the host."""
    if weights.is_complex():
        raise TypeError(f"{function}: {name} must hold real numbers, got {weights.dtype}")
    if not values_may_be_read(weights) or not weights.is_floating_point():
        if values_may_be_read(weights) and weights.numel() and bool((weights < 0).any()):
            raise ValueError(f"{function}: {name} must not be negative, got {weights.min().item()}")
        return
    bad = ~(torch.isfinite(weights) & (weights >= 0))
    if bool(bad.any()):
        raise ValueError(
            f"{function}: {name} must be finite and not negative, "
            f"got {weights[bad].flatten()[0].item()}"
        )


def check_in_range(function: str, name: str, index: Tensor, size: int, what: str) -> None:
    """Indices in [0, size); read only where that does not stall the host."""
    if not values_may_be_read(index) or index.numel() == 0:
        return
    low, high = int(index.min()), int(index.max())
    if low < 0 or high >= size:
        raise ValueError(
            f"{function}: {name} must index {what} (0 to {size - 1}), got values from {low} to "
            f"{high}"
        )


def check_embeddings(
    function: str, query: Tensor, key: Tensor, *, are_pairs: bool, allow_empty: bool
) -> None:
    """Two matrices of one width, dtype and device; are_pairs: and of as many rows."""
    check_tensor(function, "query", query)
    check_tensor(function, "key", key)
    check_dims(function, "query", query, "(N, D)")
    check_dims(function, "key", key, "(N, D)")
    check_floating(function, "query", query)
    check_has_data(function, "query", query)
    if are_pairs:
        check_size(function, "key", key, 0, query.shape[0], "the rows of query")
    check_size(function, "key", key, 1, query.shape[1], "the features of query")
    check_same_dtype(function, "key", key, "query", query)
    check_same_device(function, "key", key, "query", query)
    for dim, part in enumerate(("row", "feature")):
        if query.shape[dim] == 0 and not (part == "row" and allow_empty):
            raise ValueError(
                f"{function}: query must have at least one {part}, got {tuple(query.shape)}"
            )


def check_pair_weights(
    function: str, weights: Tensor, query: Tensor, *, divides_by_sum: bool
) -> None:
    """(N,) one per pair; divides_by_sum: they may not all be 0, as a mean of one process divides by
    their sum. Of a group, another rank may have the weight."""
    check_tensor(function, "weights", weights)
    check_dims(function, "weights", weights, "(N,)")
    check_size(function, "weights", weights, 0, query.shape[0], "one per pair")
    check_same_device(function, "weights", weights, "query", query)
    check_weights(function, "weights", weights)
    if divides_by_sum and values_may_be_read(weights) and not bool((weights != 0).any()):
        raise ValueError(f'{function}: weights must not all be 0 with reduction="mean"')
