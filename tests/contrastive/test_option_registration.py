"""The ops and the public function with the further options: opcheck and gradcheck."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from crossalign import fused_contrastive_loss
from crossalign.contrastive.arguments import checked
from crossalign.contrastive.blocks import Pass, all_passes, query_key_pass
from crossalign.contrastive.options import LossArguments, LossOptions
from crossalign.contrastive.problem import ContrastiveGrads, ContrastiveSums
from crossalign.contrastive.row_loss import row_loss
from crossalign.contrastive.terms import term_rules
from tests.support.contrastive.option_cases import (
    ALONE,
    Options,
    completed,
    make_inputs,
    name_of,
)
from tests.support.pooling_cases import BACKENDS, Run

RUN = Run("torch", "cpu", torch.float64)
# Hardness is a constant times the similarity, which a difference quotient cannot hold still.
SMOOTH = [completed({name: value}) for name, value in ALONE if "hardness" not in name]
CHECKED: dict[str, Options] = {
    "both_sides": {
        "directions": ("query_to_key", "key_to_query", "query_to_query", "key_to_key"),
        "false_negative_margin": -0.15,
        "label_smoothing": 0.15,
        "ids": "mask",
        "negatives": "owned",
        "temperature": "learned",
    },
    "guided": {"guides": "relative", "negatives": "few", "debias": 0.1, "hardness": 2.5},
    "exclude_self": {"exclude_self": True, "ids": "positive", "label_smoothing": 0.15},
    "key_ids": {"key_ids": True, "ids": "positive", "negatives": "few"},
}


@pytest.mark.parametrize("options", SMOOTH, ids=name_of)
def test_gradcheck_of_every_option(options: Options) -> None:
    inputs = make_inputs(options, RUN, num_pairs=5, num_features=3)
    leaves = {name: leaf.requires_grad_() for name, leaf in inputs.leaves.items()}

    def loss(*given: Tensor) -> Tensor:
        result = fused_contrastive_loss(**dict(zip(leaves, given, strict=True)), **inputs.options)
        assert isinstance(result, Tensor)
        return result

    assert torch.autograd.gradcheck(loss, list(leaves.values()))


def arguments_of(options: Options) -> LossArguments:
    inputs = make_inputs(options, RUN, num_pairs=5, num_features=3)
    given: dict[str, Any] = {n: leaf.requires_grad_() for n, leaf in inputs.leaves.items()}
    given |= inputs.options
    of_options: dict[str, Any] = {
        name: given.pop(name) for name in LossOptions._fields if name in given
    }
    missing: dict[str, Any] = dict.fromkeys(LossArguments._fields)
    return checked(LossArguments(**{**missing, **given, "options": LossOptions(**of_options)}))


def passes_of(arguments: LossArguments) -> list[Pass]:
    return list(all_passes(arguments, query_key_pass(arguments)).values())


@pytest.mark.filterwarnings("default:The .grad attribute")  # of PyTorch 2.15's opcheck itself
@pytest.mark.parametrize(
    ("name", "use_triton"),
    [
        *((name, False) for name in CHECKED),
        pytest.param("guided", True, marks=BACKENDS[1].marks),
    ],
)
def test_opcheck_of_every_pass(name: str, use_triton: bool) -> None:
    arguments = arguments_of(CHECKED[name])
    forward = torch.ops.crossalign.contrastive_fwd.default
    for given in passes_of(arguments):
        sides, problem = given.tensors(arguments), given.problem
        torch.library.opcheck(forward, (*sides, *problem, None, True, use_triton))
        plain = [None if side is None else side.detach() for side in sides]
        detached = problem._replace(scale=problem.scale.detach())
        sums = ContrastiveSums(*forward(*plain, *detached, None, False, use_triton))
        grads = [torch.randn_like(getattr(sums, field)) for field in ContrastiveGrads._fields]
        needs = (True, True, sides[2] is not None, True)
        backward = torch.ops.crossalign.contrastive_bwd.default
        torch.library.opcheck(backward, (*plain, *detached, *sums, *grads, *needs, use_triton))


@pytest.mark.filterwarnings("default:The .grad attribute")  # of PyTorch 2.15's opcheck itself
@pytest.mark.parametrize("name", [name for name in CHECKED if name != "both_sides"])
def test_opcheck_of_the_row_loss(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = arguments_of(CHECKED[name])
    (first,), calls = passes_of(arguments), []

    def record(*values: Any) -> Any:
        calls.append(values)
        return torch.ops.crossalign.row_loss_fwd(*values)

    monkeypatch.setattr("crossalign.contrastive.row_loss._forward_op", record)
    rules = term_rules(arguments, first.problem.scale)
    sides = first.tensors(arguments)
    row_loss(*sides, first.problem, rules, arguments.weights, "sum", with_stats=True)
    torch.library.opcheck(torch.ops.crossalign.row_loss_fwd.default, calls[0])
