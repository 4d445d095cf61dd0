"""Losses of pytorch-metric-learning over the fused loss: same names, same arguments.

    from crossalign.integrations.pytorch_metric_learning import NTXentLoss, SupConLoss

Labels and reference embeddings need O((N + R) D) memory for N and R rows, and NTXentLoss one number
per positive pair; pairs that a miner lists need one number each. Reducers, regularizers and
statistics of the host work on what these losses give them, as before.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from crossalign.contrastive.loss import fused_contrastive_loss
from crossalign.contrastive.terms import SOFTPLUS_THRESHOLD
from crossalign.integrations.host import checked_constructor, import_host
from crossalign.integrations.listed_pairs import ListedPairs, same_label_pairs
from crossalign.integrations.row_terms import log_sum_of_others

__all__ = ["NTXentLoss", "SupConLoss"]

_host: Any = import_host("pytorch-metric-learning", "pytorch_metric_learning.losses")
_distances: Any = import_host("pytorch-metric-learning", "pytorch_metric_learning.distances")
_util: Any = import_host("pytorch-metric-learning", "pytorch_metric_learning.utils")
_pairs: Any = import_host(
    "pytorch-metric-learning", "pytorch_metric_learning.utils.loss_and_miner_utils"
)


def _check(loss: Any) -> None:
    name, distance = type(loss).__name__, loss.distance
    product = _distances.DotProductSimilarity
    if not isinstance(distance, product) or type(distance).compute_mat is not product.compute_mat:
        raise ValueError(
            f"{name}: distance must be CosineSimilarity or DotProductSimilarity, got "
            f"{type(distance).__name__}; use the class of pytorch_metric_learning for another one"
        )
    if distance.power != 1:
        raise ValueError(
            f"{name}: distance must have power=1, got power={distance.power}; use the class of "
            "pytorch_metric_learning for another one"
        )
    if not loss.temperature > 0:
        raise ValueError(
            f"{name}: temperature must be above 0, got {loss.temperature}; use the class of "
            "pytorch_metric_learning for a negative one"
        )


class NTXentLoss(_host.NTXentLoss):
    """pytorch_metric_learning's NTXentLoss without a row of logits for each positive pair.

    Raises:
        ValueError: distance is neither a cosine nor a dot product, or has a power other than 1;
            temperature is not above 0.
    """

    __init__ = checked_constructor(_host.NTXentLoss.__init__, _check)

    def compute_loss(
        self, embeddings: Tensor, labels: Any, indices_tuple: Any, ref_emb: Any, ref_labels: Any
    ) -> dict[str, Any]:
        query, other = _vectors(self.distance, embeddings, ref_emb, labels, indices_tuple)
        if indices_tuple is not None:
            anchors, positives, *rest = _pairs.convert_to_pairs(indices_tuple, labels)
            pairs, negatives = ListedPairs(anchors, positives), ListedPairs(*rest)
            if _is_too_few(pairs.count, negatives.count):
                return self.zero_losses()  # type: ignore[no-any-return]
            logits = negatives.products(query, other) / self.temperature
            losses = self._against(
                negatives.log_sum_by_row(logits, len(query)), pairs, query, other
            )
            return _loss(losses.to(embeddings.dtype), (pairs.rows, pairs.columns), "pos_pair")
        is_self = ref_labels is labels
        same = same_label_pairs(labels, ref_labels, without_self=is_self)
        equal = same.count + (len(labels) if is_self else 0)
        if _is_too_few(same.count, len(labels) * len(ref_labels) - equal):
            return self.zero_losses()  # type: ignore[no-any-return]
        if same.is_one_to_one(len(labels), len(ref_labels)):
            losses = fused_contrastive_loss(
                query,
                other[same.columns],
                ids=same.row_labels,
                normalize=False,
                temperature=self.temperature,
                reduction="none",
            )
        else:
            log_sum = log_sum_of_others(
                query, other, same.row_labels, same.column_labels, self.temperature
            )
            losses = self._against(log_sum, same, query, other)
        return _loss(losses.to(embeddings.dtype), (same.rows, same.columns), "pos_pair")

    def _against(self, log_sum: Tensor, pairs: ListedPairs, query: Tensor, other: Tensor) -> Tensor:
        """(P,) losses of the pairs, each against its row's negatives, of which log_sum is."""
        logits = pairs.products(query, other) / self.temperature
        return F.softplus(log_sum[pairs.rows] - logits, threshold=SOFTPLUS_THRESHOLD)


class SupConLoss(_host.SupConLoss):
    """pytorch_metric_learning's SupConLoss without its matrices of logits and masks.

    Raises:
        ValueError: distance is neither a cosine nor a dot product, or has a power other than 1;
            temperature is not above 0.
    """

    __init__ = checked_constructor(_host.SupConLoss.__init__, _check)

    def compute_loss(
        self, embeddings: Tensor, labels: Any, indices_tuple: Any, ref_emb: Any, ref_labels: Any
    ) -> dict[str, Any]:
        query, other = _vectors(self.distance, embeddings, ref_emb, labels, indices_tuple)
        if indices_tuple is not None:
            losses = self._of_listed_pairs(
                query, other, _pairs.convert_to_pairs(indices_tuple, labels)
            )
        else:
            losses = self._of_labels(query, other, labels, ref_labels)
        if losses is None:
            return self.zero_losses()  # type: ignore[no-any-return]
        indices = torch.arange(query.shape[0], device=query.device)
        return _loss(losses.to(embeddings.dtype), indices, "element")

    def _of_labels(
        self, query: Tensor, other: Tensor, labels: Tensor, ref_labels: Tensor
    ) -> Tensor | None:
        is_self = ref_labels is labels
        pairs = same_label_pairs(labels, ref_labels, without_self=is_self)
        equal = pairs.count + (len(labels) if is_self else 0)
        negatives = len(labels) * len(ref_labels) - equal
        if _is_too_few(pairs.count, negatives):
            return None
        keys: dict[str, Any] = {"key_ids": pairs.column_labels}
        terms: Tensor = fused_contrastive_loss(
            query,
            other,
            ids=pairs.row_labels,
            same_id="positive",
            **({"exclude_self": True} if is_self else keys),
            normalize=False,
            temperature=self.temperature,
            reduction="none",
        )
        return terms

    def _of_listed_pairs(self, query: Tensor, other: Tensor, listed: Any) -> Tensor | None:
        rows, columns = query.shape[0], other.shape[0]
        positives = ListedPairs(*listed[:2]).without_repeats(columns)
        negatives = ListedPairs(*listed[2:]).without_repeats(columns)
        if _is_too_few(len(listed[0]), len(listed[2])):
            return None
        candidates = positives.with_others(negatives)
        logits = candidates.products(query, other) / self.temperature
        log_sum = candidates.log_sum_by_row(logits, rows)
        total = positives.sum_by_row(logits[: positives.count], rows)
        counts = positives.counts_by_row(rows)
        return torch.where(counts > 0, log_sum - total / counts.clamp_min(1), 0)


def _vectors(
    distance: Any, embeddings: Tensor, ref_emb: Tensor, labels: Any, indices_tuple: Any
) -> tuple[Tensor, Tensor]:
    """Queries and references as the distance normalizes them, with its statistics."""
    _util.common_functions.labels_or_indices_tuple_required(labels, indices_tuple)
    distance.reset_stats()
    distance.check_shapes(embeddings, ref_emb)
    query = distance.maybe_normalize(embeddings)
    other = query if ref_emb is embeddings else distance.maybe_normalize(ref_emb)
    distance.set_default_stats(embeddings, ref_emb, query, other)
    return query, other


def _is_too_few(positives: int, negatives: int) -> bool:
    """Where the host gives a loss of zero."""
    return min(positives, negatives) == 0 or max(positives, negatives) <= 1


def _loss(losses: Tensor, indices: Any, kind: str) -> dict[str, Any]:
    return {"loss": {"losses": losses, "indices": indices, "reduction_type": kind}}
