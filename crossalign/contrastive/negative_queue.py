"""A memory of past keys, which later batches take as further negatives."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from crossalign.argument_checks import (
    check_dims,
    check_floating,
    check_has_data,
    check_integer,
    check_integer_number,
    check_same_device,
    check_tensor,
)
from crossalign.distributed.gather import gather_rows, shard_layout
from crossalign.distributed.group_owner import OwnsGroup
from crossalign.distributed.rank_agreement import agree, check_group
from crossalign.precision import concatenated

_NAME = "NegativeQueue"


class NegativeQueue(OwnsGroup, nn.Module):
    """The last `size` keys, first in, first out, without gradient.

        queue = NegativeQueue(65536)
        loss = fused_contrastive_loss(
            query, key, queue.negatives, ids=ids, negative_ids=queue.negative_ids
        )
        queue.push(key, ids)

    Push after the loss, or a key would be a negative of its own query. With keys of a slowly moving
    copy of the encoder this is MoCo, with keys of the encoder itself a cross-batch memory. The
    content is part of the module's state_dict and so of a checkpoint, moves with .to(device), and
    is never written in place: a backward that is still to come keeps what its loss was given. A
    deep copy shares the process group; a pickle leaves it out, and says so when it is loaded.

    Args:
        size: keys to hold, at least 1.
        group: torch.distributed process group over whose ranks each batch is spread. push then
            takes this rank's keys and stores those of all ranks, in rank order, as one process
            would; `negatives` is this rank's share of them, so that the loss with the same group
            counts each once. A checkpoint does not depend on the number of ranks.

    Raises:
        TypeError: size is not an integer.
        ValueError: size is below 1.

    Cost: memory for size x D elements on every rank; a push copies them once.
    Source: He et al. 2020 (MoCo), Wang et al. 2020 (cross-batch memory).

    Examples:
        >>> queue = NegativeQueue(16)
        >>> queue.push(torch.randn(6, 4))
        >>> queue.negatives.shape
        torch.Size([6, 4])
    """

    keys: Tensor  # (n, D), oldest first
    ids: Tensor  # (n,) int64, or (0,) without ids

    def __init__(self, size: int, *, group: Any = None) -> None:
        super().__init__()
        check_integer_number(_NAME, "size", size)
        if size < 1:
            raise ValueError(f"{_NAME}: size must be at least 1, got {size}")
        if group is not None:
            check_group(_NAME, group)
        self.size, self.group = int(size), group
        self.register_buffer("keys", torch.empty(0, 0))
        self.register_buffer("ids", torch.empty(0, dtype=torch.int64))

    def __len__(self) -> int:
        """How many keys it holds, of all ranks."""
        return int(self.keys.shape[0])

    @property
    def negatives(self) -> Tensor | None:
        """(H, D) for the loss: everything, or this rank's share of it; None before the first push.

        With a group every rank gets a tensor or every rank None.
        """
        return self._share(self.keys) if len(self) else None

    @property
    def negative_ids(self) -> Tensor | None:
        """(H,) int64, the ids of `negatives`; None where the keys came without."""
        return self._share(self.ids) if len(self.ids) else None

    @torch.no_grad()
    def push(self, keys: Tensor, ids: Tensor | None = None) -> None:
        """Stores a batch; the oldest keys leave. With a group every rank calls it.

        Args:
            keys: (N, D) of this rank. With a group N may differ between ranks, and may be 0.
            ids: (N,) integers as in the loss; every push has them, or none.

        Raises:
            TypeError: keys is not a tensor, or ids holds no integers.
            ValueError: shapes, dtype or device do not fit what is stored, or ids come now and then.
                With a group the same text on every rank.
        """
        if self.group is None:
            self._check(keys, ids)
        else:
            keys, ids = self._gathered(keys, ids)
        if keys.shape[0] == 0:
            return
        kept = self.keys if len(self) else keys[:0]
        self.keys = concatenated([kept, keys.detach()])[-self.size :].clone()
        if ids is not None:
            kept_ids = self.ids.to(ids.device)
            self.ids = torch.cat([kept_ids, ids.detach().long()])[-self.size :].clone()

    def extra_repr(self) -> str:
        return f"size={self.size}, stored={len(self)}"

    def _share(self, rows: Tensor) -> Tensor:
        if self.group is None:
            return rows
        ranks = dist.get_world_size(self.group)
        return rows.tensor_split(ranks)[dist.get_rank(self.group)]

    def _gathered(self, keys: Tensor, ids: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Those of all ranks, in rank order."""
        assert self.group is not None
        problem: Exception | None = None
        facts: dict[str, object] = {}
        try:
            self._check(keys, ids)
            facts = {"rows": keys.shape[0], "columns": keys.shape[1], "dtype": str(keys.dtype)}
            facts |= {"device": str(keys.device), "ids given": ids is not None}
        except (TypeError, ValueError) as error:
            problem = error
        records = agree(_NAME, facts, self.group, may_differ=("rows", "device"), problem=problem)
        rows = [record["rows"] for record in records]
        devices = [record["device"] for record in records]
        row_bytes = keys.shape[1] * keys.dtype.itemsize
        layout = shard_layout(self.group, rows, devices, row_bytes=row_bytes)
        if ids is not None:
            ids = gather_rows(ids.long()[:, None], layout)[:, 0]
        return gather_rows(keys.detach(), layout), ids

    def _check(self, keys: Tensor, ids: Tensor | None) -> None:
        check_tensor(_NAME, "keys", keys)
        check_dims(_NAME, "keys", keys, "(N, D)")
        check_floating(_NAME, "keys", keys)
        check_has_data(_NAME, "keys", keys)
        stored = self.keys
        if len(self) and keys.shape[1:] != stored.shape[1:]:
            raise ValueError(
                f"{_NAME}: keys must have the {stored.shape[1]} features of those stored, got "
                f"shape {tuple(keys.shape)}"
            )
        for what in ("dtype", "device"):
            if len(self) and getattr(keys, what) != getattr(stored, what):
                raise ValueError(
                    f"{_NAME}: keys must have the {what} of those stored "
                    f"({getattr(stored, what)}), got {getattr(keys, what)}; convert them, or the "
                    "queue with .to()"
                )
        if len(self) and (ids is not None) != bool(len(self.ids)):
            raise ValueError(
                f"{_NAME}: ids must come with every push or with none, got "
                f"{'none after some' if ids is None else 'some after none'}"
            )
        if ids is not None:
            check_tensor(_NAME, "ids", ids)
            check_integer(_NAME, "ids", ids)
            check_same_device(_NAME, "ids", ids, "keys", keys)
            if tuple(ids.shape) != (keys.shape[0],):
                raise ValueError(
                    f"{_NAME}: ids must have shape ({keys.shape[0]},), one per key, got "
                    f"{tuple(ids.shape)}"
                )

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """The stored number of keys is that of the checkpoint, of which the newest are kept."""
        for name in ("keys", "ids"):
            stored = state_dict.get(prefix + name)
            if isinstance(stored, Tensor):
                state_dict[prefix + name] = stored = stored[-self.size :]
                mine = getattr(self, name)
                setattr(self, name, stored.new_empty(stored.shape, device=mine.device))
        super()._load_from_state_dict(state_dict, prefix, *rest)
