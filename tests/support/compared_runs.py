"""What runs under DeepSpeed are compared by: records, weights and moments within tolerances."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from crossalign.alignment.train import AlignmentRun, Record

LEARNING_RATE = 1e-3  # of make_config


class Result(NamedTuple):
    records: list[Record]
    weights: dict[str, Tensor]
    first: dict[str, Tensor]  # a tenth of the first step's gradients
    moments: dict[str, Any]
    held: int  # elements of the weights that a rank has between its passes


def moments_of(run: AlignmentRun) -> dict[str, Any]:
    """By the names of the parameters; without tensors where the rank is not the main one."""
    state = run.engine.optimizer_state(run.alignment, run.optimizer)["state"]
    named = run.language_model.named_parameters()
    names = [name for name, parameter in named if parameter.requires_grad]
    return {names[index]: moments for index, moments in state.items() if "exp_avg" in moments}


def assert_same_run(ours: Result, expected: Result) -> None:
    for mine, other in zip(ours.records, expected.records, strict=True):
        mine, other = ({k: v for k, v in each.items() if k != "seconds"} for each in (mine, other))
        assert mine == pytest.approx(other, rel=1e-5)
    for name, moments in expected.moments.items():
        mine = ours.moments[name]
        assert float(mine["step"]) == float(moments["step"])
        for each in ("exp_avg", "exp_avg_sq"):
            atol = 1e-5 * float(moments[each].abs().max())
            torch.testing.assert_close(mine[each], moments[each], rtol=1e-4, atol=atol, msg=name)
    assert ours.weights.keys() == expected.weights.keys()
    for name, weight in expected.weights.items():
        allowed = 4 * torch.finfo(weight.dtype).eps * weight.abs()
        # A tied head is another name of the embedding.
        names = [each for each in expected.moments if torch.equal(expected.weights[each], weight)]
        if names:
            # The first update is the gradient's sign: of nothing but rounding it may be any. The
            # second is divided by the root of its moment, and both may differ as allowed above.
            first = expected.first[names[0]].abs()
            allowed = allowed + 2 * LEARNING_RATE * (first <= 4e-5 * first.max())
            gradient = expected.moments[names[0]]["exp_avg_sq"].sqrt()
            unsure = 4 * 1e-5 * gradient.max() / gradient.clamp(min=1e-30)
            allowed = allowed + LEARNING_RATE * unsure.clamp(max=2)
        assert ((ours.weights[name] - weight).abs() <= allowed).all(), name
