"""Batches spread over ranks, and their loss and gradients in one process, for the loss's tests.

Truth is the dense reference on the whole batch. Every rank's loss gets an upstream gradient of its
own, so that a factor W or a term formed on the wrong rank shows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from crossalign import reference
from crossalign.contrastive.loss import fused_contrastive_loss
from tests.support.tolerances import assert_within_rule

D = 6
SCHEDULES = ("all_gather", "ring")
GRADIENTS = ("query", "key", "negatives", "temperature")


class Case(NamedTuple):
    """Rows and further negatives of each rank, and the options of the loss."""

    rows: Sequence[int]
    negatives: Sequence[int] | None = None
    options: tuple[str, ...] = ()  # tensors to give: ids, negative_ids, owner, weights, temperature
    arguments: dict[str, Any] = {}  # noqa: RUF012
    dtype: torch.dtype = torch.float64

    @property
    def world_size(self) -> int:
        return len(self.rows)


HARD = {"hard_negative_weight": 0.4}
OWN_ONLY = {"share_negatives": False}
SYMMETRIC = {"symmetric": True}
POSITIVE = {"same_id": "positive"}
NONE = {"reduction": "none"}
SUM = {"reduction": "sum"}
RAW = {"normalize": False, "temperature": 0.7}

# What to ask for; each line adds something that the lines before it do not reach.
WANTED: list[tuple[tuple[str, ...], dict[str, Any]]] = [
    ((), {}),
    ((), SYMMETRIC),
    # A running maximum, since these logits have no small bound, in both passes.
    ((), SYMMETRIC | RAW),
    (("temperature",), SYMMETRIC),
    (("temperature", "negatives"), SUM),
    (("negatives",), SYMMETRIC | NONE),
    (("negatives", "owner"), HARD),
    (("negatives", "owner"), SYMMETRIC | HARD | OWN_ONLY),
    (("negatives", "owner", "temperature"), SYMMETRIC | OWN_ONLY | RAW),
    (("ids",), SYMMETRIC),
    (("ids", "negatives"), POSITIVE),
    (("ids", "negatives", "negative_ids"), {}),
    (("ids", "negatives", "negative_ids"), SYMMETRIC | POSITIVE | RAW),
    (("weights",), {}),
    (("weights", "temperature"), SYMMETRIC | SUM),
    (
        ("ids", "negatives", "negative_ids", "owner", "weights", "temperature"),
        SYMMETRIC | POSITIVE | HARD,
    ),
    (
        ("ids", "negatives", "negative_ids", "owner", "weights", "temperature"),
        SYMMETRIC | POSITIVE | HARD | OWN_ONLY | NONE,
    ),
]
# Rows, and further negatives where asked for: unequal, equal and empty shards, negatives on some
# ranks only. The last of each also has negatives on a rank without rows, which owners cannot have.
SHARDS: dict[int, list[tuple[Sequence[int], Sequence[int]]]] = {
    2: [((5, 2), (0, 4)), ((3, 3), (2, 2)), ((0, 4), (3, 1))],
    3: [((4, 0, 3), (3, 0, 1)), ((0, 5, 0), (0, 2, 1))],
    4: [((2, 3, 0, 4), (1, 0, 0, 5)), ((1, 1, 1, 0), (0, 1, 0, 2))],
}


def cases(world_size: int) -> list[Case]:
    """Every option with every layout in float64, with the first one in float32."""
    found = []
    for options, arguments in WANTED:
        for index, (rows, negatives) in enumerate(SHARDS[world_size]):
            if "owner" in options:
                negatives = [n if row else 0 for n, row in zip(negatives, rows, strict=True)]
            given = negatives if "negatives" in options else None
            found.append(Case(rows, given, options, arguments))
            if index == 0:
                found.append(Case(rows, given, options, arguments, torch.float32))
    return found


def whole_batch(case: Case) -> dict[str, Any]:
    """The arguments of one process; owners index all queries."""
    generator = torch.Generator().manual_seed(7)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(case.dtype)

    num_pairs, num_negatives = sum(case.rows), sum(case.negatives or ())
    batch: dict[str, Any] = {"query": random(num_pairs, D), "key": random(num_pairs, D)}
    batch |= {"temperature": 0.3} | case.arguments
    if case.negatives is not None:
        batch["negatives"] = random(num_negatives, D)
    if "temperature" in case.options:
        batch["temperature"] = torch.tensor(batch["temperature"], dtype=torch.float64)
    if "ids" in case.options:
        batch["ids"] = torch.randint(3, (num_pairs,), generator=generator)
    if "negative_ids" in case.options:
        batch["negative_ids"] = torch.randint(3, (num_negatives,), generator=generator)
    if "owner" in case.options:
        first_row, owners = 0, []
        for rows, negatives in zip(case.rows, case.negatives or (), strict=True):
            owner = torch.randint(max(rows, 1), (negatives,), generator=generator)
            owners.append(owner + first_row)
            first_row += rows
        batch["negative_owner"] = torch.cat(owners)
    if "weights" in case.options:
        batch["weights"] = torch.rand(num_pairs, generator=generator).to(case.dtype)
    return batch


def rank_arguments(case: Case, rank: int, device: str = "cpu") -> dict[str, Any]:
    """This rank's arguments; leaves that require a gradient. Ranks without rows leave out what
    they may leave out."""
    arguments = whole_batch(case)
    for names, rows in (
        (("query", "key", "ids", "weights"), case.rows),
        (("negatives", "negative_ids", "negative_owner"), case.negatives),
    ):
        for name in names:
            if name in arguments:
                arguments[name] = arguments[name].split(list(rows or ()))[rank].clone()
    if "negative_owner" in arguments:
        arguments["negative_owner"] -= sum(case.rows[:rank])
    if case.rows[rank] == 0:
        arguments.pop("weights", None)
        if case.negatives is None or case.negatives[rank] == 0:
            arguments.pop("ids", None)
    if case.negatives is not None and case.negatives[rank] == 0:
        for name in ("negatives", "negative_ids", "negative_owner"):
            arguments.pop(name, None)
    for name, given in arguments.items():
        if isinstance(given, Tensor):
            arguments[name] = given.to(device).requires_grad_(name in GRADIENTS)
    return arguments


def upstream(case: Case, rank: int) -> Tensor:
    """Of this rank's loss: another one on every rank, and for every term."""
    if case.arguments.get("reduction") == "none":
        values = torch.linspace(0.5, 2, max(sum(case.rows), 1), dtype=torch.float64)
        return values.split(list(case.rows))[rank]
    return torch.tensor(1.0 + rank / 4, dtype=torch.float64)


class Outcome(NamedTuple):
    """Of the whole batch: what each rank returns, and the gradients of what all were given."""

    losses: list[Tensor]  # of the ranks
    gradients: dict[str, Tensor]
    stats: list[Tensor]


def truth(case: Case, compute_dtype: torch.dtype = torch.float64) -> Outcome:
    """In one process, from the reference's terms of the pairs; float64 gives float64 gradients."""
    batch = whole_batch(case)
    leaves = {name: batch[name] for name in GRADIENTS if isinstance(batch.get(name), Tensor)}
    if compute_dtype == torch.float64:
        leaves = {name: leaf.double() for name, leaf in leaves.items()}
        batch |= leaves
    for leaf in leaves.values():
        leaf.requires_grad_()
    reduction = batch.pop("reduction", "mean")
    terms, stats = reference.contrastive_loss(
        **batch, reduction="none", compute_dtype=compute_dtype
    )
    weights = batch.get("weights", torch.ones(sum(case.rows))).to(compute_dtype)
    losses = list(terms.split(list(case.rows)))
    if reduction != "none":
        losses = [case.world_size * part.sum() for part in losses]
    if reduction == "mean":
        losses = [loss / weights.sum() for loss in losses]
    total = torch.stack(
        [(loss * upstream(case, rank).to(compute_dtype)).sum() for rank, loss in enumerate(losses)]
    ).sum()
    gradients = torch.autograd.grad(total, list(leaves.values()))
    return Outcome(
        [loss.detach() for loss in losses],
        dict(zip(leaves, gradients, strict=True)),
        list(stats.values()),
    )


def joined_gradients(case: Case, by_rank: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Of the whole batch: rows in rank order, the shared temperature's gradients added up."""
    names = dict.fromkeys(name for gradients in by_rank for name in gradients)
    joined = {}
    for name in names:
        parts = [gradients[name] for gradients in by_rank if name in gradients]
        joined[name] = sum(parts[1:], parts[0]) if name == "temperature" else torch.cat(parts)
    return joined


class Result(NamedTuple):
    """What one rank got, on the CPU."""

    loss: Tensor
    stats: tuple[Tensor, ...]
    gradients: dict[str, Tensor]


def run_case(
    case: Case, rank: int, gather: str, backend: str = "auto", device: str = "cpu"
) -> Result:
    """Forward and backward on this rank of the default group."""
    arguments = rank_arguments(case, rank, device)
    leaves = {
        name: arguments[name] for name in GRADIENTS if isinstance(arguments.get(name), Tensor)
    }
    loss, stats = fused_contrastive_loss(
        **arguments,
        group=dist.group.WORLD,
        gather=gather,
        backend=backend,
        return_stats=True,
    )
    loss.backward(upstream(case, rank).to(loss))
    return Result(
        loss.detach().cpu(),
        tuple(value.cpu() for value in stats),
        {name: leaf.grad.cpu() for name, leaf in leaves.items()},
    )


def assert_close(ours: Tensor, expected: Tensor, tolerance: float, what: Any) -> None:
    assert ours.shape == expected.shape, what
    largest = expected.abs().max() if expected.numel() else 0
    error = (ours.double() - expected).abs().max() if expected.numel() else 0
    assert error <= tolerance * largest + 1e-15, (what, error, largest)


def assert_equals_one_process(case: Case, by_rank: list[Result], tolerance: float) -> None:
    """Every element to within the tolerance times the largest; statistics the same everywhere."""
    expected = truth(case)
    for rank, result in enumerate(by_rank):
        assert_close(result.loss, expected.losses[rank], tolerance, ("loss", rank, case))
        for value, other in zip(result.stats, by_rank[0].stats, strict=True):
            assert torch.equal(value, other) and value.dtype == torch.float32
    for value, wanted in zip(by_rank[0].stats, expected.stats, strict=True):
        torch.testing.assert_close(value.double(), wanted, rtol=1e-5, atol=1e-6)
    joined = joined_gradients(case, [result.gradients for result in by_rank])
    assert joined.keys() == expected.gradients.keys()
    for name, gradient in joined.items():
        assert_close(gradient, expected.gradients[name], tolerance, (name, case))


def assert_within_the_rule(case: Case, by_rank: list[Result]) -> None:
    """The rule of tolerances.py, for the loss and every gradient."""
    expected, plain = truth(case), truth(case, torch.float32)
    for rank, result in enumerate(by_rank):
        assert result.loss.dtype == torch.float32
        assert_within_rule(result.loss, expected.losses[rank], plain.losses[rank], "loss")
    joined = joined_gradients(case, [result.gradients for result in by_rank])
    assert joined.keys() == expected.gradients.keys()
    for name, gradient in joined.items():
        assert gradient.dtype == (torch.float64 if name == "temperature" else case.dtype)
        assert_within_rule(gradient, expected.gradients[name], plain.gradients[name], name)
