"""What the ranks tell one another of a call of fused_contrastive_loss, and what follows from it."""

from __future__ import annotations

import functools
import os
import sys
from typing import Any

import torch
from torch import Tensor

from crossalign.argument_checks import check_option, values_may_be_read
from crossalign.backends import choose_backend
from crossalign.contrastive.across_ranks.shards import ShardedBatch
from crossalign.contrastive.arguments import check_arguments
from crossalign.contrastive.problem import LossArguments
from crossalign.distributed.gather import BACKENDS, ShardLayout, shard_layout
from crossalign.distributed.rank_agreement import agree
from crossalign.precision import accumulator

_NAME = "fused_contrastive_loss"
# gather="auto" gathers while what that holds takes at most this share of the memory of the rank
# that has least, and else passes shards round: slower on a fast network, but in bounded memory.
GATHERED_SHARE = 1 / 8
_OPTIONAL = ("ids", "negative_ids", "negative_owner", "weights")


def agree_on_arguments(arguments: LossArguments) -> list[dict[str, Any]]:
    """Every rank's record; raises on every rank if they do not fit, or one has a bad argument."""
    facts: dict[str, object] = {}
    problem: Exception | None = None
    try:
        check_arguments(arguments)
        facts = _facts(arguments)
    except (TypeError, ValueError) as error:
        problem = error
    may_differ = ("rows", "negatives", "device", "memory", "needs gradient")
    return agree(_NAME, facts, arguments.group, may_differ=may_differ, problem=problem)


def _facts(arguments: LossArguments) -> dict[str, object]:
    query, temperature = arguments.query, arguments.temperature
    num_negatives = 0 if arguments.negatives is None else arguments.negatives.shape[0]
    gather_backend = os.environ.get("CROSSALIGN_GATHER") or "auto"
    check_option(_NAME, "the environment variable CROSSALIGN_GATHER", gather_backend, BACKENDS)
    told: object = "a tensor"
    if not isinstance(temperature, Tensor):
        told = float(temperature)
    elif values_may_be_read(temperature):
        told = float(temperature.detach())
    differentiable = {
        "query": query,
        "key": arguments.key,
        "negatives": arguments.negatives,
        "temperature": temperature,
    }
    facts: dict[str, object] = {
        "rows": query.shape[0],
        "negatives": num_negatives,
        "device": str(query.device),
        "memory": memory_bytes(query.device),
        "needs gradient": " ".join(
            name
            for name, given in differentiable.items()
            if isinstance(given, Tensor) and given.requires_grad
        ),
        "D": query.shape[1],
        "dtype": str(query.dtype),
        "device type": query.device.type,
        "temperature": told,
        "hard_negative_weight": float(arguments.hard_negative_weight),
        "backend": choose_backend(_NAME, arguments.backend, query),
        "gather": arguments.gather,
        "same_id": arguments.same_id,
        "reduction": arguments.reduction,
        "CROSSALIGN_GATHER": gather_backend,
        "gradient mode": torch.is_grad_enabled(),
    }
    for name in ("symmetric", "normalize", "share_negatives", "return_stats"):
        facts[name] = bool(getattr(arguments, name))
    for name in _OPTIONAL:
        is_empty = (num_negatives if name.startswith("negative") else query.shape[0]) == 0
        if getattr(arguments, name) is not None:
            facts[name] = "given"
        elif not is_empty:  # a rank without rows need not know that others give it
            facts[name] = "missing"
    return facts


@functools.cache
def memory_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    if not hasattr(os, "sysconf"):  # Windows does not say, and gather="auto" gathers
        return sys.maxsize
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def fill_missing(arguments: LossArguments, records: list[dict[str, Any]]) -> LossArguments:
    """Empty tensors where this rank has nothing to give but others have."""
    query = arguments.query
    filled: dict[str, Any] = {}
    if arguments.negatives is None:
        filled["negatives"] = query.new_empty((0, query.shape[1]))
    for name in _OPTIONAL:
        if getattr(arguments, name) is None and any(
            record.get(name) == "given" for record in records
        ):
            dtype = accumulator(query.dtype) if name == "weights" else torch.int64
            filled[name] = query.new_empty(0, dtype=dtype)
    return arguments._replace(**filled)


def sharded_batch(arguments: LossArguments, records: list[dict[str, Any]]) -> ShardedBatch:
    wanted = " ".join(record["needs gradient"] for record in records).split()
    wide = accumulator(arguments.query.dtype)
    # The widest row that travels is an embedding, or three numbers of the accumulator dtype.
    row_bytes = max(arguments.query.shape[1] * arguments.query.element_size(), 3 * wide.itemsize)

    def layout(name: str) -> ShardLayout:
        return shard_layout(
            arguments.group,
            [record[name] for record in records],
            [record["device"] for record in records],
            row_bytes=row_bytes,
            backend=records[0]["CROSSALIGN_GATHER"],
        )

    return ShardedBatch(
        keys=layout("rows"),
        negatives=layout("negatives"),
        negatives_have_ids=arguments.negative_ids is not None,
        keys_need_grad="key" in wanted,
        negatives_need_grad="negatives" in wanted,
        with_stats=bool(arguments.return_stats),
        use_triton=records[0]["backend"] == "triton",
    )


def choose_schedule(
    gather: str, candidates: int, query: Tensor, records: list[dict[str, Any]]
) -> str:
    """ "all_gather" or "ring"; candidates: of all ranks, query: this rank's."""
    if gather != "auto":
        return gather
    itemsize, wide = query.element_size(), accumulator(query.dtype).itemsize
    gathered = gathered_bytes(candidates, query.shape[1], itemsize, wide)
    memory = min(record["memory"] for record in records)
    return "all_gather" if gathered <= GATHERED_SHARE * memory else "ring"


def gathered_bytes(
    num_candidates: int, num_features: int, itemsize: int, wide_itemsize: int
) -> int:
    """The candidates of all ranks, their gradient, and the sum it is rounded from."""
    return num_candidates * num_features * (2 * itemsize + wide_itemsize)
