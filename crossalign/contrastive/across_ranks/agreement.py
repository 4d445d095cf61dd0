"""What the ranks tell one another of a call of fused_contrastive_loss, and what follows from it."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from crossalign.argument_checks import check_option, values_may_be_read
from crossalign.contrastive.across_ranks.shards import ShardedBatch
from crossalign.contrastive.arguments import checked, takes_triton
from crossalign.contrastive.options import LossArguments
from crossalign.distributed.gather import BACKENDS, ShardLayout, shard_layout
from crossalign.distributed.rank_agreement import agree
from crossalign.precision import accumulator

_NAME = "fused_contrastive_loss"
# gather="auto" gathers while what that holds takes at most this share of the memory of the rank
# that has least, and else passes shards round: slower on a fast network, but in bounded memory.
GATHERED_SHARE = 1 / 8
_OF_QUERIES = ("ids", "weights", "guide_query")
_OF_KEYS = ("key_ids", "guide_key")
_OF_NEGATIVES = ("negative_ids", "negative_owner", "guide_negatives")
# Options whose values need no more than to be equal; the others are told in their own way.
_TOLD_APART = ("debias", "group", "backend")


def agree_on_arguments(
    arguments: LossArguments,
) -> tuple[LossArguments, list[dict[str, Any]]]:
    """(the checked arguments, every rank's record); raises on every rank if they do not fit."""
    facts: dict[str, object] = {}
    problem: Exception | None = None
    try:
        arguments = checked(arguments)
        facts = _facts(arguments)
    except (TypeError, ValueError) as error:
        problem = error
    may_differ = ("rows", "keys", "negatives", "device", "memory", "needs gradient")
    group = arguments.options.group
    assert group is not None
    return arguments, agree(_NAME, facts, group, may_differ=may_differ, problem=problem)


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
    options, guide = arguments.options, arguments.guide_query
    facts: dict[str, object] = {
        "rows": query.shape[0],
        "keys": arguments.key.shape[0],
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
        "backend": "triton" if takes_triton(arguments) else "torch",
        "debias": "a tensor" if isinstance(options.debias, Tensor) else float(options.debias),
        "guide features": None if guide is None else guide.shape[1],
        "guide dtype": None if guide is None else str(guide.dtype),
        "CROSSALIGN_GATHER": gather_backend,
        "gradient mode": torch.is_grad_enabled(),
    }
    for name, value in options._asdict().items():
        if name not in _TOLD_APART:
            facts[name] = _plain(value)
    sizes = dict.fromkeys(_OF_QUERIES, query.shape[0])
    sizes |= dict.fromkeys(_OF_KEYS, arguments.key.shape[0])
    sizes |= dict.fromkeys(_OF_NEGATIVES, num_negatives)
    for name, size in sizes.items():
        if getattr(arguments, name) is not None:
            facts[name] = "given"
        elif size:  # a rank without rows need not know that others give it
            facts[name] = "missing"
    return facts


def _plain(value: Any) -> object:
    """An option as the records can carry it: NumPy's numbers as Python's, names as one text."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, Sequence):
        return " + ".join(value)
    return bool(value) if type(value).__name__ in ("bool", "bool_") else float(value)


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
    is_guided = any(record.get("guide_query") == "given" for record in records)
    for name in (*_OF_QUERIES, *_OF_KEYS, *_OF_NEGATIVES):
        if getattr(arguments, name) is not None:
            continue
        if name.startswith("guide_"):
            if is_guided:
                (told,) = {
                    (record["guide features"], record["guide dtype"])
                    for record in records
                    if record.get("guide features") is not None
                }
                dtype = getattr(torch, told[1].removeprefix("torch."))
                filled[name] = query.new_empty((0, told[0]), dtype=dtype)
        elif any(record.get(name) == "given" for record in records):
            dtype = accumulator(query.dtype) if name == "weights" else torch.int64
            filled[name] = query.new_empty(0, dtype=dtype)
    return arguments._replace(**filled)


def sharded_batch(arguments: LossArguments, records: list[dict[str, Any]]) -> ShardedBatch:
    wanted = " ".join(record["needs gradient"] for record in records).split()
    wide = accumulator(arguments.query.dtype)
    group = arguments.options.group
    assert group is not None
    # The widest row that travels is a part of a gradient, a guide's, or five numbers.
    row_bytes = max(arguments.query.shape[1], 5) * wide.itemsize
    if arguments.guide_query is not None:
        row_bytes = max(row_bytes, arguments.guide_query.shape[1] * wide.itemsize)

    def layout(rows: list[int]) -> ShardLayout:
        return shard_layout(
            group,
            rows,
            [record["device"] for record in records],
            row_bytes=row_bytes,
            backend=records[0]["CROSSALIGN_GATHER"],
        )

    return ShardedBatch(
        num_queries=sum(record["rows"] for record in records),
        keys=layout([record["keys"] for record in records]),
        negatives=layout([record["negatives"] for record in records]),
        negatives_have_ids=arguments.negative_ids is not None,
        keys_need_grad="key" in wanted,
        negatives_need_grad="negatives" in wanted,
        queries_need_grad="query" in wanted,
        with_stats=bool(arguments.options.return_stats),
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
    """The candidates of all ranks, and what this rank has of their gradient: the sum of products,
    and what becomes of it."""
    return num_candidates * num_features * (itemsize + 2 * wide_itemsize)
