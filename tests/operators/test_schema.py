"""The schema of an op follows from the records of its arguments and results."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from crossalign.operators.schema import build_schema


class Given(NamedTuple):
    x: Tensor
    weights: Tensor | None
    size: int
    rate: float
    bound: float | None
    is_on: bool
    name: str


class Pair(NamedTuple):
    first: Tensor
    second: Tensor


class Unknown(NamedTuple):
    parts: list[Tensor]


def test_every_type_of_an_argument() -> None:
    expected = (
        "(Tensor x, Tensor? weights, SymInt size, float rate, float? bound, bool is_on, str name) "
        "-> Tensor"
    )
    assert build_schema([Given], None) == expected


def test_records_follow_one_another_and_a_prefix_tells_them_apart() -> None:
    schema = build_schema([Pair, ("grad_", Pair)], Pair)
    assert schema == (
        "(Tensor first, Tensor second, Tensor grad_first, Tensor grad_second) -> (Tensor, Tensor)"
    )
    parsed = torch._C.parse_schema(f"some::op{schema}")
    assert [argument.name for argument in parsed.arguments][2:] == ["grad_first", "grad_second"]


def test_a_type_that_no_schema_has_raises() -> None:
    with pytest.raises(KeyError, match="list"):
        build_schema([Unknown], None)
