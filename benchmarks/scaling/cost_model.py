"""What one contrastive step costs each rank, by counting; the text to it is docs/scaling.md.

Counted are the matrix products and what embeddings and their gradients travel and occupy, with
equal shards. Not modeled: element-wise work, the efficiency of small products, workspaces of fixed
size, and contention on the network.

Shapes: N pairs and H further negatives of all W ranks, M = N + H, n = N / W, m = M / W, D features.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from crossalign.contrastive.across_ranks.agreement import gathered_bytes
from crossalign.distributed.rank_agreement import RECORD_BYTES

SCHEDULES = ("all_gather", "ring", "open_clip", "inf_cl")
_WIDE = 4  # bytes of the accumulator dtype, float32


class Machine(NamedTuple):
    """Rates of one rank; the defaults are round assumptions, to be replaced by your own."""

    matrix_tflops: float = 400.0  # of 16-bit products; tf32 and float32 are taken at half of it
    link_gbps: float = 50.0  # gigabytes per second that a rank sends, and receives, at once
    latency_us: float = 10.0  # of one transfer between neighbors


class RankCost(NamedTuple):
    """Of one forward and backward pass, on one rank."""

    operations: float  # of matrix products: a multiplication and an addition count as two
    wire_bytes: float  # sent
    memory_bytes: float  # at the peak, beyond this rank's embeddings and their gradients
    seconds: float


def rank_cost(
    schedule: str,
    world_size: int,
    num_pairs: int,
    num_features: int,
    *,
    num_negatives: int = 0,
    symmetric: bool = True,
    itemsize: int = 2,
    machine: Machine | None = None,
) -> RankCost:
    """Cost of a step in which num_pairs pairs lie evenly on world_size ranks.

    Args:
        schedule: "all_gather" or "ring" of fused_contrastive_loss; or, for comparison,
            "open_clip" (its local loss with gathered gradients) or "inf_cl" (its ring).
        world_size: W, at least 1.
        num_pairs: N, of all ranks.
        num_features: D.
        num_negatives: H, of all ranks; the two others have none.
        symmetric: both directions.
        itemsize: bytes per element of the embeddings; inf_cl turns all into 4.
        machine: the rates that `seconds` follows from.

    Raises:
        ValueError: the schedule is unknown or has no further negatives, or a size is below 1.
    """
    if schedule not in SCHEDULES:
        raise ValueError(f"rank_cost: schedule must be one of {SCHEDULES}, got {schedule!r}")
    sizes = {"world_size": world_size, "num_pairs": num_pairs, "num_features": num_features}
    for name, size in {**sizes, "itemsize": itemsize, "num_negatives": num_negatives + 1}.items():
        if size < 1:
            raise ValueError(f"rank_cost: {name} must be positive, got {size}")
    if num_negatives and schedule in ("open_clip", "inf_cl"):
        raise ValueError(f"rank_cost: num_negatives must be 0 for {schedule}, got {num_negatives}")
    batch = _Batch(world_size, num_pairs, num_pairs + num_negatives, num_features, itemsize)
    count = {"all_gather": _all_gather, "ring": _ring, "open_clip": _open_clip, "inf_cl": _inf_cl}
    return count[schedule](batch, symmetric, machine or Machine())


class _Batch(NamedTuple):
    ranks: int
    pairs: int
    candidates: int
    features: int
    itemsize: int

    @property
    def product(self) -> float:
        """Operations of this rank's queries against all candidates."""
        return 2 * self.pairs / self.ranks * self.candidates * self.features

    @property
    def shard_elements(self) -> float:
        return self.candidates / self.ranks * self.features

    @property
    def shard_bytes(self) -> float:
        return self.shard_elements * self.itemsize

    @property
    def record_bytes(self) -> float:
        """What the ranks tell one another before they begin, each way."""
        return RECORD_BYTES * (self.ranks - 1)


def _all_gather(batch: _Batch, symmetric: bool, machine: Machine) -> RankCost:
    """Forward one product, backward three: the logits again, and the gradients of both sides."""
    others = batch.ranks - 1
    numbers = batch.pairs / batch.ranks * _WIDE * others if symmetric else 0.0
    # Of the keys of others: one partial log-sum-exp. Of its own, to others: two coefficients.
    gradient = batch.shard_elements * _WIDE  # as parts of a sum, which is rounded once
    wire = 2 * batch.record_bytes + (batch.shard_bytes + gradient) * others + 3 * numbers
    transfers = (5 if symmetric else 3) * math.ceil(math.log2(batch.ranks))
    memory = gathered_bytes(batch.candidates, batch.features, batch.itemsize, _WIDE)
    operations = 4 * batch.product
    seconds = _seconds(operations, machine) + _on_the_wire(wire, transfers, machine)
    return RankCost(operations, wire, memory, seconds)


def _ring(batch: _Batch, symmetric: bool, machine: Machine) -> RankCost:
    """The same products in W blocks; a transfer is hidden by the block beside it, or hides it."""
    others, pairs = batch.ranks - 1, batch.pairs / batch.ranks
    rounds = batch.ranks if others else 0  # what follows the shard also comes home
    parts = pairs * _WIDE if symmetric else 0.0
    forward_shard = batch.shard_bytes
    # Inverse norms travel with the candidates, and two coefficients with the keys.
    backward_shard = batch.shard_bytes + batch.shard_elements / batch.features * _WIDE + 2 * parts
    gradient = batch.shard_elements * _WIDE
    wire = 2 * batch.record_bytes + others * (forward_shard + backward_shard)
    wire += rounds * (parts + gradient)
    # Two shards of candidates; of one shard of gradients the product's sum and what becomes of it,
    # and the sums that come and go; of the queries' gradient the sum and a part.
    memory = batch.shard_elements * (2 * batch.itemsize + 4 * _WIDE)
    memory += pairs * batch.features * 2 * _WIDE
    block = _seconds(batch.product / batch.ranks, machine)
    seconds = _on_the_wire(batch.record_bytes, math.ceil(math.log2(batch.ranks)), machine)
    seconds += _steps(block, forward_shard, parts, batch.ranks, machine)
    seconds += _steps(3 * block, backward_shard, gradient, batch.ranks, machine)
    return RankCost(4 * batch.product, wire, memory, seconds)


def _steps(block: float, shard: float, following: float, ranks: int, machine: Machine) -> float:
    """One round: each step lasts as long as its block or its transfers, whichever is slower."""
    if ranks == 1:
        return block
    home = _on_the_wire(following, 1, machine) if following else 0.0
    first = max(block, _on_the_wire(shard, 1, machine))
    between = max(block, _on_the_wire(shard + following, 1, machine))
    return first + (ranks - 2) * between + max(block, home) + home


def _open_clip(batch: _Batch, symmetric: bool, machine: Machine) -> RankCost:
    """Each direction gathers its positives and keeps its logits: three products apiece.

    Source: mlfoundations/open_clip: src/open_clip/loss.py (local_loss and gather_with_grad).
    """
    directions, others = 2 if symmetric else 1, batch.ranks - 1
    operations = directions * 3 * batch.product
    wire = directions * 2 * batch.shard_bytes * others
    logits = batch.pairs / batch.ranks * batch.candidates
    # Features of all ranks and their gradient; the logits and their float32 log-probabilities.
    memory = directions * (
        2 * batch.candidates * batch.features * batch.itemsize + logits * (batch.itemsize + _WIDE)
    )
    transfers = directions * 2 * math.ceil(math.log2(batch.ranks))
    seconds = _seconds(operations, machine) + _on_the_wire(wire, transfers, machine)
    return RankCost(operations, wire, memory, seconds)


def _inf_cl(batch: _Batch, symmetric: bool, machine: Machine) -> RankCost:
    """Each direction goes round by itself, in float32 tensors and tf32 products, five of them:
    both gradient kernels form the logits again.

    Source: DAMO-NLP-SG/Inf-CLIP: inf_cl/ring.py and inf_cl/flash.py (inf_cl 1.2.1).
    """
    directions, others = 2 if symmetric else 1, batch.ranks - 1
    shard = batch.shard_elements * _WIDE
    rounds = batch.ranks if others else 0
    operations = directions * 5 * batch.product
    wire = directions * (2 * others * shard + rounds * shard)
    # Query and keys as float32; the next keys; their gradient's part, sum and the arriving one; the
    # queries' part and sum. One direction at a time, but both keep their float32 inputs.
    memory = directions * 2 * shard + 6 * shard
    half = machine._replace(matrix_tflops=machine.matrix_tflops / 2)
    block = _seconds(batch.product / batch.ranks, half)
    one_way = _steps(block, shard, 0.0, batch.ranks, machine)
    one_way += _steps(4 * block, shard, shard, batch.ranks, machine)
    return RankCost(operations, wire, memory, directions * one_way)


def _seconds(operations: float, machine: Machine) -> float:
    return operations / (machine.matrix_tflops * 1e12)


def _on_the_wire(num_bytes: float, transfers: int, machine: Machine) -> float:
    return num_bytes / (machine.link_gbps * 1e9) + transfers * machine.latency_us * 1e-6
