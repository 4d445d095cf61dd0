"""What the ranks tell one another of a call of fused_sigmoid_loss, and what follows from it."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import torch
from torch import Tensor

from crossalign.argument_checks import check_option, values_may_be_read
from crossalign.backends import choose_backend
from crossalign.contrastive.across_ranks.agreement import choose_schedule, memory_bytes
from crossalign.contrastive.sigmoid.arguments import NAME, check_arguments
from crossalign.contrastive.sigmoid.problem import SigmoidArguments
from crossalign.distributed.gather import BACKENDS, ShardLayout, shard_layout
from crossalign.distributed.rank_agreement import agree
from crossalign.precision import accumulator


class ShardedPairs(NamedTuple):
    """Where the pairs are, and what all ranks want of them."""

    layout: ShardLayout
    key_needs_grad: bool  # on any rank
    use_triton: bool
    schedule: str  # "all_gather" or "ring"

    def first_row(self, rank: int) -> int:
        return sum(self.layout.rows[:rank])


def agree_on_arguments(arguments: SigmoidArguments) -> list[dict[str, Any]]:
    """Every rank's record; raises on every rank if they do not fit, or one has a bad argument."""
    assert arguments.group is not None
    facts: dict[str, object] = {}
    problem: Exception | None = None
    try:
        check_arguments(arguments)
        facts = _facts(arguments)
    except (TypeError, ValueError) as error:
        problem = error
    may_differ = ("rows", "device", "memory", "needs gradient")
    return agree(NAME, facts, arguments.group, may_differ=may_differ, problem=problem)


def _facts(arguments: SigmoidArguments) -> dict[str, object]:
    query = arguments.query
    gather_backend = os.environ.get("CROSSALIGN_GATHER") or "auto"
    check_option(NAME, "the environment variable CROSSALIGN_GATHER", gather_backend, BACKENDS)
    differentiable = ("query", "key", "temperature", "bias")
    facts: dict[str, object] = {
        "rows": query.shape[0],
        "device": str(query.device),
        "memory": memory_bytes(query.device),
        "needs gradient": " ".join(n for n in differentiable if _has_gradient(arguments, n)),
        "D": query.shape[1],
        "dtype": str(query.dtype),
        "device type": query.device.type,
        "temperature": _told(arguments.temperature),
        "bias": _told(arguments.bias),
        "normalize": arguments.normalize,
        "reduction": arguments.reduction,
        "gather": arguments.gather,
        "backend": choose_backend(NAME, arguments.backend, query),
        "CROSSALIGN_GATHER": gather_backend,
        "gradient mode": torch.is_grad_enabled(),
    }
    for name in ("ids", "weights"):
        if getattr(arguments, name) is not None:
            facts[name] = "given"
        elif query.shape[0]:  # a rank without rows need not know that others give it
            facts[name] = "missing"
    return facts


def _has_gradient(arguments: SigmoidArguments, name: str) -> bool:
    given = getattr(arguments, name)
    return isinstance(given, Tensor) and given.requires_grad


def _told(value: float | Tensor) -> object:
    if isinstance(value, Tensor):
        return float(value.detach()) if values_may_be_read(value) else "a tensor"
    return float(value)


def fill_missing(arguments: SigmoidArguments, records: list[dict[str, Any]]) -> SigmoidArguments:
    """Empty tensors where this rank has nothing to give but others have."""
    query = arguments.query
    dtypes = {"ids": torch.int64, "weights": accumulator(query.dtype)}
    filled: dict[str, Any] = {
        name: query.new_empty(0, dtype=dtype)
        for name, dtype in dtypes.items()
        if getattr(arguments, name) is None and any(r.get(name) == "given" for r in records)
    }
    return arguments._replace(**filled)


def sharded_pairs(arguments: SigmoidArguments, records: list[dict[str, Any]]) -> ShardedPairs:
    query, group = arguments.query, arguments.group
    assert group is not None
    rows = [record["rows"] for record in records]
    layout = shard_layout(
        group,
        rows,
        [record["device"] for record in records],
        row_bytes=query.shape[1] * accumulator(query.dtype).itemsize,
        backend=records[0]["CROSSALIGN_GATHER"],
    )
    wanted = " ".join(record["needs gradient"] for record in records).split()
    return ShardedPairs(
        layout=layout,
        key_needs_grad="key" in wanted,
        use_triton=records[0]["backend"] == "triton",
        schedule=choose_schedule(arguments.gather, sum(rows), query, records),
    )
