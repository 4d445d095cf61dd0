"""The further options over the ranks of a group give what one process gives.

Truth is the loss of the whole batch in one process, in float64.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from crossalign import fused_contrastive_loss
from tests.support.contrastive.loss_outcomes import Inputs
from tests.support.contrastive.option_cases import (
    ALONE,
    CHOICES,
    Options,
    completed,
    flat,
    is_allowed,
    make_inputs,
    pairs_of_options,
    random_options,
)
from tests.support.pooling_cases import Run
from tests.support.process_group import run_ranks

NUM_PAIRS = 9
OF_PAIRS = ("query", "ids", "weights", "guide_query", "debias")
OF_KEYS = ("key", "key_ids", "guide_key")
OF_NEGATIVES = ("negatives", "negative_ids", "negative_owner", "guide_negatives")
LEAVES = ("query", "key", "negatives", "temperature")
GATHERS = ("all_gather", "ring")


def single_options() -> list[Options]:
    """Each option alone, and many of them together."""
    alone = [completed({name: value}) for name, value in ALONE]
    joint = {"directions": CHOICES["directions"][-1], "label_smoothing": 0.1, "debias": "per_pair"}
    joint |= {"hardness": 1.5, "negatives": "owned", "guides": "relative", "weights": True}
    joint |= {"false_negative_margin": 0.1, "ids": "mask", "temperature": "learned"}
    assert is_allowed(joint)
    return [options for options in [*alone, joint] if is_allowed(options)]


def calls(num_random: int, with_pairs: bool) -> list[tuple[Options, str]]:
    """Options, and how the ranks' keys meet: single options either way, the many in turn."""
    found = [(options, gather) for options in single_options() for gather in GATHERS]
    many = random_options(num_random, 3) + (pairs_of_options() if with_pairs else [])
    return found + [(options, GATHERS[index % 2]) for index, options in enumerate(many)]


def whole_batch(options: Options, index: int) -> Inputs:
    torch.manual_seed(index)
    return flat(make_inputs(options, Run("torch", "cpu", torch.float64), NUM_PAIRS, 5))


def shares(size: int, world_size: int) -> list[int]:
    """Uneven, and nothing for the last rank but one of three."""
    first = size - size // 3
    return [first, size - first] if world_size == 2 else [first, 0, size - first]


def on_rank(inputs: Inputs, rank: int, world_size: int) -> dict[str, Any]:
    """This rank's arguments. Negatives that are owned go with their owners."""
    arguments: dict[str, Any] = {**inputs.options, **inputs.leaves}
    pairs = shares(NUM_PAIRS, world_size)
    first = sum(pairs[:rank])
    rows = slice(first, first + pairs[rank])
    keys = shares(inputs.leaves["key"].shape[0], world_size)
    key_rows = slice(sum(keys[:rank]), sum(keys[: rank + 1]))
    kept = negative_rows(inputs, rows, rank, world_size)
    for name, given in arguments.items():
        if not isinstance(given, Tensor) or given.dim() == 0:
            continue
        if name in OF_NEGATIVES:
            arguments[name] = given[kept]
        elif name in OF_KEYS:
            arguments[name] = given[key_rows]
        elif name in OF_PAIRS:
            arguments[name] = given[rows]
    if "negative_owner" in arguments:
        arguments["negative_owner"] = arguments["negative_owner"] - first
    return arguments


def negative_rows(inputs: Inputs, rows: slice, rank: int, world_size: int) -> Tensor:
    owner = inputs.options.get("negative_owner")
    if owner is not None:
        return ((owner >= rows.start) & (owner < rows.stop)).nonzero()[:, 0]
    count = inputs.leaves["negatives"].shape[0] if "negatives" in inputs.leaves else 0
    return torch.arange(count).split(shares(count, world_size))[rank]


def run_all(rank: int, world_size: int, num_random: int, with_pairs: bool) -> list[dict[str, Any]]:
    results = []
    for index, (options, gather) in enumerate(calls(num_random, with_pairs)):
        arguments = on_rank(whole_batch(options, index), rank, world_size)
        given = {name: arguments[name] for name in LEAVES if name in arguments}
        leaves = {n: x.clone().requires_grad_() for n, x in given.items() if torch.is_tensor(x)}
        given = arguments | leaves | {"group": dist.group.WORLD, "gather": gather}
        loss, stats = fused_contrastive_loss(**given, return_stats=True)
        gradients = torch.autograd.grad(loss.sum(), list(leaves.values()))
        named = dict(zip(leaves, gradients, strict=True))
        results.append({"loss": loss.detach(), "stats": stats, "gradients": named})
    return results


@pytest.mark.filterwarnings("ignore:fused_contrastive_loss")
@pytest.mark.parametrize(
    ("world_size", "num_random", "with_pairs"),
    [
        (2, 200, False),
        (3, 25, False),
        pytest.param(2, 0, True, marks=pytest.mark.slow),
        pytest.param(3, 200, True, marks=pytest.mark.slow),
    ],
)
def test_options_over_ranks_equal_one_process(
    world_size: int, num_random: int, with_pairs: bool
) -> None:
    by_rank = run_ranks(run_all, world_size, world_size, num_random, with_pairs, timeout_s=300)
    for index, (options, gather) in enumerate(calls(num_random, with_pairs)):
        inputs = whole_batch(options, index)
        leaves = {name: x.clone().requires_grad_() for name, x in inputs.leaves.items()}
        loss, stats = fused_contrastive_loss(**inputs.options, **leaves, return_stats=True)
        expected = torch.autograd.grad(loss.sum(), list(leaves.values()))
        parts, what = [results[index] for results in by_rank], f"{options}, {gather}"
        # Each rank returns W times its part; gradients add up to W times those of the loss.
        is_split = options.get("reduction") == "none"
        factor = 1 if is_split else world_size
        losses = [part["loss"] for part in parts]
        whole = torch.cat(losses) if is_split else torch.stack(losses).mean()
        torch.testing.assert_close(whole, loss.detach(), rtol=1e-10, atol=1e-12, msg=what)
        for name, gradient in zip(leaves, expected, strict=True):
            pieces = [part["gradients"][name] for part in parts]
            if name == "temperature":
                got = torch.stack(pieces).sum(0)
            elif name == "negatives" and "negative_owner" in inputs.options:
                got = torch.cat(pieces)
                gradient = gradient[_rank_order(inputs, world_size)]
            else:
                got = torch.cat(pieces)
            torch.testing.assert_close(
                got, factor * gradient, rtol=1e-8, atol=1e-10, msg=f"{what}: {name}"
            )
        for part in parts:
            torch.testing.assert_close(part["stats"], stats, rtol=1e-5, atol=1e-6, msg=what)


def _rank_order(inputs: Inputs, world_size: int) -> Tensor:
    """Where the rows of owned negatives are when the ranks' are put in order."""
    pairs, found = shares(NUM_PAIRS, world_size), []
    for rank in range(world_size):
        rows = slice(sum(pairs[:rank]), sum(pairs[: rank + 1]))
        found.append(negative_rows(inputs, rows, rank, world_size))
    return torch.cat(found)
