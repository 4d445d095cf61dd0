"""Misuse of fused_contrastive_loss(group=...) ends on every rank, with the same words, and soon."""

from __future__ import annotations

import os
import re
import time
import warnings
from typing import Any

import pytest
import torch
import torch.distributed as dist

from crossalign.contrastive.loss import fused_contrastive_loss
from crossalign.distributed.gather import gather_negatives
from tests.support.process_group import RankError, run_ranks

X = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
IDS = torch.zeros(2, dtype=torch.int64)
OWNED = {"negatives": X, "negative_owner": IDS}


def inputs(**changes: Any) -> dict[str, Any]:
    return {"query": X, "key": X.flip(0), **changes}


# What rank 0 and rank 1 pass, and what both read.
DISAGREEMENTS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "width": (inputs(), inputs(query=X[:, :2], key=X[:, :2]), "D must .* 3 on rank 0; 2 on rank 1"),
    "dtype": (
        inputs(),
        inputs(query=X.double(), key=X.double()),
        r"dtype must .* torch.float32 on rank 0; torch.float64 on rank 1",
    ),
    "temperature": (inputs(), inputs(temperature=0.1), "temperature must .* 0.05 on .*; 0.1 on"),
    "learned": (
        inputs(temperature=torch.tensor(0.5)),
        inputs(temperature=torch.tensor(0.25)),
        "temperature must .* 0.5 on rank 0; 0.25 on rank 1",
    ),
    "symmetric": (inputs(), inputs(symmetric=True), "symmetric must .* False on rank 0; True on"),
    "normalize": (inputs(normalize=False), inputs(), "normalize must .* False on .*; True on"),
    "same_id": (
        inputs(ids=IDS),
        inputs(ids=IDS, same_id="positive"),
        "same_id must .* mask on rank 0; positive on rank 1",
    ),
    "reduction": (inputs(), inputs(reduction="sum"), "reduction must .* mean on .*; sum on"),
    "gather": (inputs(), inputs(gather="ring"), "gather must .* auto on rank 0; ring on rank 1"),
    "return_stats": (inputs(), inputs(return_stats=True), "return_stats must .* False on rank 0"),
    "hard_negative_weight": (
        inputs(**OWNED),
        inputs(**OWNED, hard_negative_weight=0.5),
        "hard_negative_weight must .* 0.0 on rank 0; 0.5 on rank 1",
    ),
    "share_negatives": (
        inputs(**OWNED),
        inputs(**OWNED, share_negatives=False),
        "share_negatives must .* True on rank 0; False on rank 1",
    ),
    "ids": (inputs(ids=IDS), inputs(), "ids must .* given on rank 0; missing on rank 1"),
    "weights": (inputs(), inputs(weights=X[:, 0].abs()), "weights must .* missing on rank 0"),
    "negative_owner": (inputs(**OWNED), inputs(negatives=X), "negative_owner must .* given on"),
    "negative_ids": (
        inputs(ids=IDS, negatives=X, negative_ids=IDS),
        inputs(ids=IDS, negatives=X),
        "negative_ids must .* given on rank 0; missing on rank 1",
    ),
    "no rows": (
        inputs(query=X[:0], key=X[:0]),
        inputs(query=X[:0], key=X[:0]),
        "some rank of the group must have a row, got 2 empty",
    ),
    "no owner on any rank": (
        inputs(hard_negative_weight=0.5),
        inputs(hard_negative_weight=0.5),
        "hard_negative_weight=0.5 needs negative_owner, got None",
    ),
}
# What only rank 1 does wrong: its own error, which rank 0 hears of.
LOCAL_ERRORS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "temperature": (inputs(temperature=-1.0), ValueError, "temperature must be a finite number"),
    "type": (inputs(query=None), TypeError, "query must be a torch.Tensor, got NoneType"),
    "sizes": (inputs(key=X[:1]), ValueError, "key must have size 2 in dimension 0"),
    "option": (inputs(gather="star"), ValueError, "gather must be one of .* got 'star'"),
    "owner": (inputs(negatives=X, negative_owner=IDS + 2), ValueError, "negative_owner must index"),
    "no owner": (inputs(negatives=X, share_negatives=False), ValueError, "needs negative_owner"),
}


def message_of(arguments: dict[str, Any]) -> tuple[str, str]:
    """The error of a call; then a good call, which the error must not have spoilt."""
    with pytest.raises((TypeError, ValueError)) as raised:
        fused_contrastive_loss(**arguments, group=dist.group.WORLD)
    with torch.enable_grad():
        loss = fused_contrastive_loss(X, X.flip(0), group=dist.group.WORLD)
    assert bool(torch.isfinite(loss))
    return type(raised.value).__name__, str(raised.value)


def misuse(rank: int) -> dict[str, tuple[str, str]]:
    """Every misuse in one group: none may leave a rank waiting."""
    raised = {name: message_of(case[:2][rank]) for name, case in DISAGREEMENTS.items()}
    for name, (arguments, _, _) in LOCAL_ERRORS.items():
        raised[f"local {name}"] = message_of(arguments if rank == 1 else inputs())
    with torch.set_grad_enabled(rank == 0):
        raised["gradient mode"] = message_of(inputs())
    with pytest.raises(ValueError) as other_function:
        if rank == 0:
            fused_contrastive_loss(X, X, group=dist.group.WORLD)
        else:
            gather_negatives(X)
    raised["function"] = "ValueError", str(other_function.value)
    with pytest.raises(TypeError, match=r"group must be a .* process group .* got 3"):
        fused_contrastive_loss(X, X, group=3)
    return raised


def test_arguments_that_differ_raise_on_every_rank() -> None:
    # A wait for the group's timeout would outlast the run, which then fails.
    ours, theirs = run_ranks(misuse, 2, timeout_s=180, group_timeout_s=600)
    for name, (_, _, message) in DISAGREEMENTS.items():
        assert ours[name] == theirs[name]
        assert ours[name][0] == "ValueError"
        assert re.match(f"fused_contrastive_loss: {message}", ours[name][1]), ours[name]
    for name, (_, kind, message) in LOCAL_ERRORS.items():
        name, prefix = f"local {name}", "fused_contrastive_loss: rank 1 of the group stopped: "
        assert theirs[name][0] == kind.__name__
        assert re.match(f"fused_contrastive_loss: .*{message}", theirs[name][1]), theirs[name]
        assert ours[name] == ("ValueError", f"{prefix}{kind.__name__}: {theirs[name][1]}")
    assert ours["gradient mode"] == theirs["gradient mode"]
    assert "gradient mode must be the same" in ours["gradient mode"][1]
    assert ours["function"] == theirs["function"]
    assert "function must be the same" in ours["function"][1]


def die(rank: int, gather: str, when: str) -> None:
    """Rank 1 dies before the call, or after the forward pass; or it never calls."""
    x = X.clone().requires_grad_()
    options = {"group": dist.group.WORLD, "gather": gather, "symmetric": True}
    fused_contrastive_loss(x, x.flip(0), **options)
    if rank == 1 and when == "before":
        os._exit(1)
    if rank == 1 and when == "never":
        time.sleep(4)
        return
    loss = fused_contrastive_loss(x, x.flip(0), **options)
    if rank == 1:
        os._exit(1)
    loss.backward()


@pytest.mark.parametrize(
    ("gather", "when", "message"),
    [
        (
            "all_gather",
            "before",
            "a rank of the group died, or did not call fused_contrastive_loss",
        ),
        ("ring", "never", "a rank of the group died, or did not call fused_contrastive_loss"),
        ("all_gather", "after", "did not call .* for the backward of call 2"),
        ("ring", "after", "did not call .* for the backward of call 2"),
    ],
)
def test_missing_rank_raises_within_the_timeout(gather: str, when: str, message: str) -> None:
    errors = run_ranks(die, 2, gather, when, group_timeout_s=2, expect_errors=True)
    assert isinstance(errors[0], RankError)
    assert re.search(message, errors[0].message), errors[0].message


def warn_and_differentiate_twice(rank: int) -> None:
    group = dist.group.WORLD
    alone = X[rank:1].requires_grad_()  # one pair in all, and no further negatives
    for options in ({}, {"gather": "ring"}):
        with pytest.warns(UserWarning, match="no query has a negative") as caught:
            fused_contrastive_loss(alone, alone, group=group, **options)
        assert caught[0].filename == __file__
    same = torch.zeros(len(X), dtype=torch.int64)
    with pytest.warns(UserWarning, match="no query has a negative"):
        loss = fused_contrastive_loss(X, X, ids=same, group=group)
    assert float(loss) == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # Rank 0's pairs have equal ids, but rank 1's are negatives of them.
        fused_contrastive_loss(X, X, ids=same + rank, group=group)
    x = X.clone().requires_grad_()
    loss = fused_contrastive_loss(x, x.flip(0), group=group)
    (gradient,) = torch.autograd.grad(loss, x, create_graph=True)
    with pytest.raises(RuntimeError, match="twice"):
        gradient.sum().backward()


def weigh_nothing(rank: int) -> None:
    for reduction in ("sum", "mean"):
        weights = torch.full((len(X),), float(rank))  # rank 0 has none, which alone is no error
        loss = fused_contrastive_loss(
            X, X.flip(0), weights=weights, reduction=reduction, group=dist.group.WORLD
        )
        assert loss.isfinite()
    message = "weights must not all be 0 on all ranks"
    with pytest.raises(ValueError, match=message):
        fused_contrastive_loss(X, X.flip(0), weights=0 * weights, group=dist.group.WORLD)


def test_weights_that_are_all_0_on_all_ranks_are_refused() -> None:
    run_ranks(weigh_nothing, 2)


def test_calls_without_negatives_warn_and_second_derivatives_raise() -> None:
    run_ranks(warn_and_differentiate_twice, 2)


def skip_a_backward(rank: int, gather: str) -> str:
    x = X.clone().requires_grad_()
    options: Any = {"group": dist.group.WORLD, "gather": gather, "symmetric": True}
    with pytest.raises(ValueError) as caught:
        for _ in range(2):
            loss = fused_contrastive_loss(x, x.flip(0), **options)
            if rank == 0:
                loss.backward()
    return str(caught.value)


@pytest.mark.parametrize("gather", ["all_gather", "ring"])
def test_a_rank_that_skips_its_backward_is_told_on_all(gather: str) -> None:
    """Its next call met the others' backward in tensors of other sizes: SIGABRT, or a hang."""
    told = run_ranks(skip_a_backward, 2, gather)
    assert told[0] == told[1]
    assert "got the backward of call 1 on rank 0; call 2 on rank 1; every rank must" in told[0]
