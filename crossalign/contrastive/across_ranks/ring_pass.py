"""Shards passed round a ring of ranks, each transfer beside the work on what came before.

In step t rank r works on the shard of rank r - t, while that of rank r - t - 1 is on its way to it.
What the visits of a shard give follows one step behind it, and comes home after the last step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from crossalign.distributed.gather import ShardLayout
from crossalign.distributed.rank_agreement import missing_rank_named, transport_device


class Traveling(NamedTuple):
    """A tensor of every shard: this rank's, and how many rows each rank's has."""

    tensor: Tensor
    rows: Sequence[int]


def circulate(
    shard: Sequence[Traveling],
    layout: ShardLayout,
    visit: Callable[[int, list[Tensor]], Tensor],
    combine: Callable[[Tensor, Tensor], Tensor],
    rows: Sequence[int],
) -> Tensor:
    """Takes every rank's shard past every rank; what all visits gave for this rank's, combined.

    visit(source, tensors) sees the shard of rank `source` and gives rows[source] rows.
    """
    size = len(layout.rows)
    tensors = [traveling.tensor for traveling in shard]
    visited: Tensor | None = None
    for step in range(size):
        source = (layout.rank - step) % size
        outgoing: list[tuple[Tensor, int]] = []
        if step + 1 < size:
            next_rows = [traveling.rows[source - 1] for traveling in shard]
            outgoing += zip(tensors, next_rows, strict=True)
        if visited is not None:
            outgoing.append((visited, rows[source]))
        passing = Passing(outgoing, layout)
        here = visit(source, tensors)
        arrived = passing.wait()
        visited = here if visited is None else combine(arrived.pop(), here)
        tensors = arrived
    assert visited is not None
    if size == 1:
        return visited
    (home,) = Passing([(visited, rows[layout.rank])], layout).wait()
    return home


class Passing:
    """Tensors on their way to the next rank, and from the one before."""

    def __init__(self, outgoing: Sequence[tuple[Tensor, int]], layout: ShardLayout) -> None:
        """outgoing: each tensor, and how many rows its like from the rank before has."""
        group, rank, size = layout.group, layout.rank, len(layout.rows)
        self.arriving: list[Tensor] = []
        self.devices = [tensor.device for tensor, _ in outgoing]
        operations = []
        for tag, (tensor, rows) in enumerate(outgoing):
            sent = tensor.to(transport_device(group, tensor.device)).contiguous()
            buffer = sent.new_empty((rows, *sent.shape[1:]))
            self.arriving.append(buffer)
            for way, moved, peer in ((dist.isend, sent, rank + 1), (dist.irecv, buffer, rank - 1)):
                if moved.numel():
                    # As bytes: no backend has to know the dtype.
                    as_bytes = moved.view(torch.uint8)
                    operation = dist.P2POp(
                        way, as_bytes, group=group, tag=tag, group_peer=peer % size
                    )
                    operations.append(operation)
        self.what = f"ring of call {layout.call}"
        with missing_rank_named(self.what):
            self.works = dist.batch_isend_irecv(operations) if operations else []

    def wait(self) -> list[Tensor]:
        with missing_rank_named(self.what):
            for work in self.works:
                work.wait()
        return [
            tensor.to(device) for tensor, device in zip(self.arriving, self.devices, strict=True)
        ]
