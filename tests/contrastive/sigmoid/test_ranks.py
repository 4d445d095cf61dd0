"""fused_sigmoid_loss(group=...) in real processes against the reference on the whole batch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from crossalign import fused_sigmoid_loss, reference
from tests.support.pooling_cases import needs_interpreter
from tests.support.process_group import run_ranks

D = 6
SCHEDULES = ("all_gather", "ring")
LEAVES = ("query", "key", "temperature", "bias")


class Case(NamedTuple):
    """Rows of each rank, and the options of the loss."""

    rows: Sequence[int]
    given: tuple[str, ...] = ()  # tensors to give: ids, weights, temperature, bias
    arguments: dict[str, Any] = {}  # noqa: RUF012
    dtype: torch.dtype = torch.float64


WANTED: list[tuple[tuple[str, ...], dict[str, Any]]] = [
    ((), {}),
    (("temperature", "bias"), {"normalize": False}),
    (("ids", "weights"), {"reduction": "sum"}),
    (("ids", "weights", "temperature", "bias"), {}),
    (("ids", "weights", "bias"), {"reduction": "none"}),
]
ROWS: dict[int, list[tuple[int, ...]]] = {2: [(5, 2), (0, 4)], 3: [(4, 0, 3), (2, 2, 2)]}


def cases(world_size: int) -> list[Case]:
    """Every option with every layout in float64, with the first one in float32."""
    layouts = ROWS[world_size]
    found = [Case(rows, *wanted) for wanted in WANTED for rows in layouts]
    return found + [Case(layouts[0], *wanted, torch.float32) for wanted in WANTED]


def whole_batch(case: Case) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(7)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(case.dtype)

    num_pairs = sum(case.rows)
    batch: dict[str, Any] = {"query": random(num_pairs, D), "key": random(num_pairs, D)}
    batch |= {"temperature": 0.3, "bias": -1.5} | case.arguments
    for name in ("temperature", "bias"):
        if name in case.given:
            batch[name] = torch.tensor(batch[name], dtype=torch.float64)
    if "ids" in case.given:
        batch["ids"] = torch.randint(4, (num_pairs,), generator=generator)
    if "weights" in case.given:
        batch["weights"] = torch.rand(num_pairs, generator=generator).to(case.dtype)
    return batch


def rank_arguments(case: Case, rank: int) -> dict[str, Any]:
    """This rank's arguments; a rank without rows leaves out what it may leave out."""
    arguments = whole_batch(case)
    for name in ("query", "key", "ids", "weights"):
        if name in arguments:
            arguments[name] = arguments[name].split(list(case.rows))[rank].clone()
    if case.rows[rank] == 0:
        arguments.pop("weights", None)
        arguments.pop("ids", None)
    for name in LEAVES:
        if isinstance(arguments[name], Tensor):
            arguments[name].requires_grad_()
    return arguments


def upstream(case: Case, rank: int) -> Tensor:
    """Of this rank's loss: another one on every rank, and for every term."""
    if case.arguments.get("reduction") == "none":
        values = torch.linspace(0.5, 2, sum(case.rows), dtype=torch.float64)
        return values.split(list(case.rows))[rank]
    return torch.tensor(1.0 + rank / 4, dtype=torch.float64)


Result = tuple[Tensor, dict[str, Tensor]]


def run_case(case: Case, rank: int, gather: str, backend: str) -> Result:
    arguments = rank_arguments(case, rank)
    options: dict[str, Any] = {"group": dist.group.WORLD, "gather": gather, "backend": backend}
    loss = fused_sigmoid_loss(**arguments, **options)
    loss.backward(upstream(case, rank).to(loss))
    leaves = {name: arguments[name] for name in LEAVES if isinstance(arguments[name], Tensor)}
    return loss.detach(), {name: leaf.grad for name, leaf in leaves.items()}


def run_cases(rank: int, all_cases: list[Case], backend: str) -> list[dict[str, Result]]:
    """Each case with both schedules, twice, which must give the same bits."""
    results = []
    for case in all_cases:
        by_schedule = {gather: run_case(case, rank, gather, backend) for gather in SCHEDULES}
        for gather, (loss, grads) in by_schedule.items():
            again, grads_again = run_case(case, rank, gather, backend)
            assert torch.equal(again, loss), (case, gather)
            assert all(torch.equal(grads_again[name], grad) for name, grad in grads.items())
        results.append(by_schedule)
    return results


def truth(case: Case) -> tuple[list[Tensor], dict[str, Tensor]]:
    """In one process and float64: the loss of each rank, and the gradients of the whole batch."""
    batch = whole_batch(case)
    leaves = {name: batch[name].double() for name in LEAVES if isinstance(batch[name], Tensor)}
    for leaf in leaves.values():
        leaf.requires_grad_()
    batch |= leaves
    reduction = batch.pop("reduction", "mean")
    terms = reference.sigmoid_loss(**batch, reduction="none")
    losses = list(terms.split(list(case.rows)))
    if reduction != "none":
        losses = [len(case.rows) * part.sum() for part in losses]
    if reduction == "mean":
        total = batch["weights"].double().sum() if "weights" in batch else sum(case.rows)
        losses = [loss / total for loss in losses]
    sent = [(loss * upstream(case, rank)).sum() for rank, loss in enumerate(losses)]
    gradients = torch.autograd.grad(torch.stack(sent).sum(), list(leaves.values()))
    return [loss.detach() for loss in losses], dict(zip(leaves, gradients, strict=True))


def assert_equals_one_process(case: Case, by_rank: list[Result], tolerance: float) -> None:
    losses, gradients = truth(case)
    for rank, (loss, _) in enumerate(by_rank):
        torch.testing.assert_close(loss.double(), losses[rank], rtol=tolerance, atol=tolerance)
    for name, expected in gradients.items():
        parts = [grads[name].double() for _, grads in by_rank]
        joined = torch.cat(parts) if expected.dim() else torch.stack(parts).sum()
        limit = tolerance * float(expected.abs().max())
        torch.testing.assert_close(joined, expected, rtol=0, atol=limit, msg=f"{name} of {case}")


@pytest.mark.parametrize("world_size", [2, 3])
def test_loss_and_gradients_equal_one_process(world_size: int) -> None:
    all_cases = cases(world_size)
    by_rank = run_ranks(run_cases, world_size, all_cases, "auto")
    for index, case in enumerate(all_cases):
        for gather in SCHEDULES:
            results = [results[index][gather] for results in by_rank]
            assert_equals_one_process(case, results, 1e-12 if case.dtype == torch.float64 else 2e-5)


KERNEL_CASES = [
    Case((5, 3), ("temperature", "bias"), {}, torch.float32),
    Case((0, 6), ("ids", "weights"), {"reduction": "sum"}, torch.float32),
]


@pytest.mark.parametrize("backend", [pytest.param("triton", marks=needs_interpreter)])
def test_triton_kernels_serve_every_rank(backend: str) -> None:
    """With a rank that has no rows, for which there is nothing to launch."""
    by_rank = run_ranks(run_cases, 2, KERNEL_CASES, backend)
    for index, case in enumerate(KERNEL_CASES):
        for gather in SCHEDULES:
            assert_equals_one_process(case, [one[index][gather] for one in by_rank], 2e-5)


X = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))


def inputs(**changes: Any) -> dict[str, Any]:
    return {"query": X, "key": X.flip(0), "temperature": 0.1, "bias": -10.0, **changes}


NO_ROWS = inputs(query=X[:0], key=X[:0])
NO_WEIGHT = inputs(weights=torch.zeros(2))
# What rank 0 and rank 1 pass, and what both read.
MISUSES: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "width": (inputs(), inputs(query=X[:, :2], key=X[:, :2]), "D must .* 3 on rank 0; 2 on rank 1"),
    "temperature": (inputs(), inputs(temperature=0.2), "temperature must .* 0.1 on .*; 0.2 on"),
    "bias": (inputs(), inputs(bias=torch.tensor(1.0)), "bias must .* -10.0 on rank 0; 1.0 on ran"),
    "normalize": (inputs(), inputs(normalize=False), "normalize must .* True on rank 0; False on"),
    "reduction": (inputs(), inputs(reduction="sum"), "reduction must .* mean on .*; sum on"),
    "gather": (inputs(), inputs(gather="ring"), "gather must .* auto on rank 0; ring on rank 1"),
    "ids": (inputs(ids=torch.arange(2)), inputs(), "ids must .* given on rank 0; missing on"),
    "no rows": (NO_ROWS, NO_ROWS, "some rank of the group must have a row, got 2 empty"),
    "no weight": (NO_WEIGHT, NO_WEIGHT, "weights must not all be 0 on all ranks"),
    "one rank": (inputs(), inputs(bias=float("nan")), "bias must be finite, got nan"),
}


def misuse(rank: int) -> dict[str, str]:
    """Every misuse in one group, each followed by a good call: none may leave a rank waiting."""
    messages = {}
    for name, case in MISUSES.items():
        with pytest.raises(ValueError) as raised:
            fused_sigmoid_loss(**case[:2][rank], group=dist.group.WORLD)
        messages[name] = str(raised.value)
        assert torch.isfinite(fused_sigmoid_loss(**inputs(), group=dist.group.WORLD))
    return messages


def test_misuse_raises_on_every_rank() -> None:
    for messages in run_ranks(misuse, 2):
        for name, message in messages.items():
            assert message.startswith("fused_sigmoid_loss: "), message
            assert re.search(MISUSES[name][2], message), (name, message)


def one_rank_needs_a_gradient(rank: int) -> Tensor | None:
    """Every rank takes part in the backward, whether it needs a gradient itself or not."""
    key = X.clone().requires_grad_(rank == 1)
    loss = fused_sigmoid_loss(**inputs(key=key), group=dist.group.WORLD)
    loss.backward()
    return key.grad


def test_a_rank_without_gradients_takes_part_in_the_backward() -> None:
    of_rank_0, of_rank_1 = run_ranks(one_rank_needs_a_gradient, 2)
    keys = torch.cat([X, X]).double().requires_grad_()
    loss = reference.sigmoid_loss(torch.cat([X, X]), keys, temperature=0.1, bias=-10.0)
    (expected,) = torch.autograd.grad(2 * loss, keys)
    assert of_rank_0 is None
    torch.testing.assert_close(of_rank_1.double(), expected[2:], rtol=1e-4, atol=1e-6)
