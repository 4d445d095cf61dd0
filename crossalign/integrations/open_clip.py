"""Losses of OpenCLIP over the fused losses: same names, same arguments.

from crossalign.integrations.open_clip import ClipLoss, SigLipLoss
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from crossalign.contrastive.loss import fused_contrastive_loss
from crossalign.contrastive.sigmoid.loss import fused_sigmoid_loss
from crossalign.integrations.host import checked_constructor, import_host

__all__ = ["ClipLoss", "SigLipLoss"]

_host: Any = import_host("open_clip_torch", "open_clip.loss")


def _check(loss: Any) -> None:
    if getattr(loss, "use_horovod", False):
        raise ValueError(
            f"{type(loss).__name__}: use_horovod must be False, got True; use the class of "
            "open_clip, or torch.distributed"
        )


class ClipLoss(_host.ClipLoss):
    """OpenCLIP's ClipLoss without its matrices of logits.

    On one process value and gradient are the host's. On several the value is too: that of the whole
    batch, or with local_loss of this rank's rows. The gradient, averaged over ranks as
    DistributedDataParallel does, is that of the whole batch whatever gather_with_grad says; without
    it the host's is 1 / world_size of that. Ranks may have different numbers of rows.

    Raises:
        ValueError: use_horovod.
        RuntimeError: world_size is not that of the default process group.
    """

    __init__ = checked_constructor(_host.ClipLoss.__init__, _check)
    _has_told = False

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: Tensor | float,
        logit_bias: Tensor | float | None = None,
        output_dict: bool = False,
    ) -> Tensor | dict[str, Tensor]:
        group = _group(self)
        loss: Tensor = fused_contrastive_loss(
            image_features,
            text_features,
            temperature=_temperature(logit_scale),
            symmetric=True,
            normalize=False,
            group=group,
        )
        if isinstance(logit_bias, Tensor) and logit_bias.requires_grad:
            loss = loss + 0 * logit_bias.sum()  # no softmax feels it, but its gradient is awaited
        if group is not None:
            self._tell_of_gradient()
            if not self.local_loss:
                loss = loss + (_mean_over_ranks(loss, group) - loss.detach())
        return {"contrastive_loss": loss} if output_dict else loss

    def _tell_of_gradient(self) -> None:
        if self.gather_with_grad or ClipLoss._has_told:
            return
        ClipLoss._has_told = True
        warnings.warn(
            f"ClipLoss: gradients are those of the batch of all {self.world_size} ranks; those of "
            "open_clip with gather_with_grad=False are smaller, 1 / world_size of them with "
            "local_loss=False, so a learning rate found there may be too high here",
            UserWarning,
            stacklevel=4,
        )


class SigLipLoss(_host.SigLipLoss):
    """OpenCLIP's SigLipLoss without its matrices of logits; every dist_impl gives the same."""

    __init__ = checked_constructor(_host.SigLipLoss.__init__, _check)

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: Tensor | float,
        logit_bias: Tensor | float | None = None,
        output_dict: bool = False,
    ) -> Tensor | dict[str, Tensor]:
        loss = fused_sigmoid_loss(
            image_features,
            text_features,
            temperature=_temperature(logit_scale),
            bias=0.0 if logit_bias is None else _scalar(logit_bias),
            normalize=False,
            group=_group(self),
        )
        return {"contrastive_loss": loss} if output_dict else loss


def _scalar(value: Tensor | float) -> Tensor | float:
    """OpenCLIP's parameters have shape () or (1,)."""
    return value.reshape(()) if isinstance(value, Tensor) else float(value)


def _temperature(logit_scale: Tensor | float) -> Tensor | float:
    return 1.0 / _scalar(logit_scale)


def _group(settings: Any) -> Any:
    """The default process group, if the host was told of more than one rank."""
    if settings.world_size <= 1:
        return None
    is_there = dist.is_available() and dist.is_initialized()
    ranks = dist.get_world_size() if is_there else 1
    if ranks != settings.world_size:
        raise RuntimeError(
            f"{type(settings).__name__}: world_size must be that of the default process group "
            f"({ranks}), got {settings.world_size}; call torch.distributed.init_process_group first"
        )
    return dist.group.WORLD


@torch.no_grad()
def _mean_over_ranks(loss: Tensor, group: Any) -> Tensor:
    total = loss.detach().clone()
    dist.all_reduce(total, group=group)
    return total / dist.get_world_size(group)
