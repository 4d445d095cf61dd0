"""The NT-Xent loss of lightly over the fused loss: same name, same arguments.

from crossalign.integrations.lightly import NTXentLoss
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from crossalign.contrastive.loss import fused_contrastive_loss
from crossalign.integrations.host import import_host
from crossalign.precision import concatenated

__all__ = ["NTXentLoss"]

_host: Any = import_host("lightly", "lightly.loss.ntx_ent_loss")
_ROWS_OF_RANK = 2**40  # more than a rank has, so that no two ranks give an id twice


class NTXentLoss(_host.NTXentLoss):
    """lightly's NTXentLoss, with or without its memory bank, without the matrices of logits.

    With gather_distributed gradients averaged over ranks, as DistributedDataParallel does, are
    those of the whole batch, and ranks may have different numbers of rows.

    A temperature below 0 pushes the views of an example apart, as in the host's.
    """

    def forward(self, out0: Tensor, out1: Tensor) -> Tensor:
        """out0, out1: (n, D), two views of the same n examples."""
        # The bank gives what it held before this batch, whose unit rows it then stores.
        _, bank = self.memory_bank(F.normalize(out1, dim=1), update=out0.requires_grad)
        if bank is not None:
            return self._against_bank(out0, out1, bank.T.to(out0))
        group = self._group()
        rank = 0 if group is None else dist.get_rank(group)
        rows = torch.arange(out0.shape[0], device=out0.device) + rank * _ROWS_OF_RANK
        # Each row is compared with the other view of all rows, and with its own view of all but
        # itself: the key of equal id that is not its positive, and so no negative, is the row.
        loss: Tensor = fused_contrastive_loss(
            self._signed(concatenated([out0, out1])),
            concatenated([out1, out0]),
            ids=rows.repeat(2),
            temperature=abs(self.temperature),
            group=group,
        )
        return loss

    def _against_bank(self, out0: Tensor, out1: Tensor, bank: Tensor) -> Tensor:
        """bank: (H, D), the only negatives: one id for all pairs keeps them from one another."""
        loss: Tensor = fused_contrastive_loss(
            self._signed(out0),
            out1,
            bank,
            ids=torch.zeros(out0.shape[0], dtype=torch.int64, device=out0.device),
            temperature=abs(self.temperature),
        )
        return loss

    def _signed(self, query: Tensor) -> Tensor:
        return query if self.temperature > 0 else -query

    def _group(self) -> Any:
        is_spread = self.gather_distributed and dist.is_initialized() and dist.get_world_size() > 1
        return dist.group.WORLD if is_spread else None
