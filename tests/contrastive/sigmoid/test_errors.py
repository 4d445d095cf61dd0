"""Every message of fused_sigmoid_loss, raised before anything runs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from crossalign import fused_sigmoid_loss

X = torch.randn(3, 4)
SCALAR = torch.tensor(0.5)

ERRORS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "no tensor": ({"key": [[1.0]]}, TypeError, "key must be a torch.Tensor, got list"),
    "dims": ({"query": X[0]}, ValueError, r"query must have shape \(N, D\), got \(4,\)"),
    "integers": ({"query": X.long()}, ValueError, "query must be float32, .* got torch.int64"),
    "rows": ({"key": X[:2]}, ValueError, r"key must have size 3 in dimension 0 \(the rows of"),
    "width": ({"key": X[:, :2]}, ValueError, "key must have size 4 in dimension 1"),
    "dtype": ({"key": X.double()}, ValueError, "key must have the dtype of query"),
    "device": ({"key": X.to("meta")}, ValueError, "key must be on the device of query"),
    "empty": ({"query": X[:0], "key": X[:0]}, ValueError, "query must have at least one row"),
    "no width": ({"query": X[:, :0], "key": X[:, :0]}, ValueError, "at least one feature"),
    "temperature 0": ({"temperature": 0}, ValueError, "temperature must be a finite number above"),
    "temperature nan": ({"temperature": float("nan")}, ValueError, "above 0, got nan"),
    "temperature text": ({"temperature": "1"}, TypeError, "temperature must be a number or a 0-d"),
    "temperature bool": ({"temperature": True}, TypeError, "temperature must be .* got bool"),
    "temperature tensor": ({"temperature": -SCALAR}, ValueError, "above 0, got -0.5"),
    "temperature shape": ({"temperature": SCALAR[None]}, ValueError, r"0-d tensor, got shape \(1"),
    "temperature int": ({"temperature": torch.tensor(1)}, ValueError, "temperature must be float"),
    "bias inf": ({"bias": float("inf")}, ValueError, "bias must be finite, got inf"),
    "bias tensor": ({"bias": SCALAR / 0}, ValueError, "bias must be finite, got inf"),
    "bias none": ({"bias": None}, TypeError, "bias must be a number or a 0-d tensor, got NoneType"),
    "bias shape": ({"bias": X[0]}, ValueError, r"bias must be .* 0-d tensor, got shape \(4,\)"),
    "sparse": ({"key": X.to_sparse()}, ValueError, "key must be a dense tensor, got torch.sparse"),
    "meta": ({"query": X.to("meta"), "key": X.to("meta")}, ValueError, "query must hold data, got"),
    "sparse bias": ({"bias": SCALAR.to_sparse()}, ValueError, "bias must be a dense tensor"),
    "meta bias": (
        {"bias": SCALAR.to("meta")},
        ValueError,
        "bias must hold data, got a meta",
    ),
    "normalize": ({"normalize": 2}, TypeError, "normalize must be True or False, got 2"),
    "ids floats": ({"ids": X[:, 0]}, TypeError, "ids must hold integers, got torch.float32"),
    "ids dims": ({"ids": X.long()}, ValueError, r"ids must have shape \(N,\)"),
    "ids size": ({"ids": torch.arange(2)}, ValueError, "ids must have size 3 .*one per pair"),
    "ids list": ({"ids": [1, 2, 3]}, TypeError, "ids must be a torch.Tensor, got list"),
    "weights sign": ({"weights": X[:, 0].abs() - 9}, ValueError, "weights must be finite and not"),
    "weights size": ({"weights": torch.ones(2)}, ValueError, "weights must have size 3"),
    "weights zero": ({"weights": torch.zeros(3)}, ValueError, "weights must not all be 0"),
    "reduction": ({"reduction": "max"}, ValueError, "reduction must be one of 'mean', 'sum', 'no"),
    "gather": ({"gather": "star"}, ValueError, "gather must be one of .* got 'star'"),
    "backend": ({"backend": "cuda"}, ValueError, "backend must be one of .* got 'cuda'"),
    "ring": ({"gather": "ring"}, ValueError, 'gather="ring" needs group, got group=None'),
    "group": ({"group": "world"}, TypeError, "group must be a torch.distributed process group"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_message(name: str) -> None:
    changes, error, text = ERRORS[name]
    arguments: dict[str, Any] = {"query": X, "key": X, "temperature": 0.1, "bias": -10.0} | changes
    with pytest.raises(error, match=f"^fused_sigmoid_loss: .*{text}"):
        fused_sigmoid_loss(**arguments)


def test_numbers_of_numpy_are_numbers() -> None:
    expected = fused_sigmoid_loss(X, X, temperature=0.5, bias=2.0)
    for kind in (np.float32, np.float64):
        given = fused_sigmoid_loss(X, X, temperature=kind(0.5), bias=kind(2), normalize=np.True_)  # type: ignore[arg-type]
        assert torch.equal(given, expected)
    assert fused_sigmoid_loss(X, X, temperature=0.5, bias=np.int64(2)) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["temperature", "bias"])
def test_temperature_and_bias_have_no_default(name: str) -> None:
    given: dict[str, Any] = {"temperature": 0.1, "bias": -10.0}
    given.pop(name)
    with pytest.raises(TypeError, match=name):
        fused_sigmoid_loss(X, X, **given)
