"""The options of the contrastive loss: everything that is no embedding, id or weight."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypedDict

import torch.distributed as dist
from torch import Tensor

from crossalign.backends import Backend
from crossalign.contrastive.choices import (
    BOTH_WAYS,
    ONE_WAY,
    Direction,
    Gather,
    HardnessOn,
    MarginType,
    Partition,
    Reduction,
    SameId,
)


class LossOptions(NamedTuple):
    """fused_contrastive_loss describes each of them."""

    symmetric: bool = False
    normalize: bool = True
    same_id: SameId = "mask"
    hard_negative_weight: float = 0.0
    share_negatives: bool = True
    directions: Sequence[Direction] = ONE_WAY
    partition: Partition = "joint"
    false_negative_margin: float | None = None
    hardness: float = 0.0
    hardness_on: HardnessOn = "all"
    label_smoothing: float = 0.0
    debias: float | Tensor = 0.0
    exclude_self: bool = False
    guide_margin: float = 0.0
    guide_margin_type: MarginType = "absolute"
    reduction: Reduction = "mean"
    group: dist.ProcessGroup | None = None
    gather: Gather = "auto"
    backend: Backend = "auto"
    return_stats: bool = False

    @property
    def is_debiased(self) -> bool:
        return isinstance(self.debias, Tensor) or self.debias != 0

    def in_both_directions(self) -> LossOptions:
        """The same options with symmetric=True written as directions and partition."""
        if not self.symmetric:
            return self
        return self._replace(directions=BOTH_WAYS, partition="per_direction")


class TermKeywords(TypedDict, total=False):
    """The options of LossOptions but return_stats, for the types of keyword arguments."""

    symmetric: bool
    normalize: bool
    same_id: SameId
    hard_negative_weight: float
    share_negatives: bool
    directions: Sequence[Direction]
    partition: Partition
    false_negative_margin: float | None
    hardness: float
    hardness_on: HardnessOn
    label_smoothing: float
    debias: float | Tensor
    exclude_self: bool
    guide_margin: float
    guide_margin_type: MarginType
    reduction: Reduction
    group: dist.ProcessGroup | None
    gather: Gather
    backend: Backend


class OptionKeywords(TermKeywords, total=False):
    """Every option of LossOptions."""

    return_stats: bool


class LossKeywords(TermKeywords, total=False):
    """The keyword arguments of fused_contrastive_loss but return_stats."""

    temperature: float | Tensor
    ids: Tensor | None
    negative_ids: Tensor | None
    key_ids: Tensor | None
    negative_owner: Tensor | None
    weights: Tensor | None
    guide_query: Tensor | None
    guide_key: Tensor | None
    guide_negatives: Tensor | None


class LossArguments(NamedTuple):
    """The arguments of fused_contrastive_loss: tensors by name, and the options."""

    query: Tensor
    key: Tensor
    negatives: Tensor | None
    temperature: float | Tensor
    ids: Tensor | None
    negative_ids: Tensor | None
    key_ids: Tensor | None
    negative_owner: Tensor | None
    weights: Tensor | None
    guide_query: Tensor | None
    guide_key: Tensor | None
    guide_negatives: Tensor | None
    options: LossOptions

    @property
    def has_own_key(self) -> bool:
        """Whether key[i] is the positive of query[i]; else only ids tell the positives."""
        return self.key_ids is None and not self.options.exclude_self
