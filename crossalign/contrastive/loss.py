"""fused_contrastive_loss(): signature and docstring."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, overload

import torch.distributed as dist
from torch import Tensor

from crossalign.backends import Backend
from crossalign.contrastive.across_ranks.loss import loss_across_ranks
from crossalign.contrastive.arguments import checked
from crossalign.contrastive.choices import (
    ONE_WAY,
    Direction,
    Gather,
    HardnessOn,
    MarginType,
    Partition,
    Reduction,
    SameId,
)
from crossalign.contrastive.one_process import loss_of_one_process
from crossalign.contrastive.options import LossArguments, LossOptions
from crossalign.contrastive.terms import ContrastiveStats

if TYPE_CHECKING:
    from typing import Unpack

    from crossalign.contrastive.options import LossKeywords


@overload
def fused_contrastive_loss(
    query: Tensor,
    key: Tensor,
    negatives: Tensor | None = None,
    *,
    return_stats: Literal[False] = False,
    **options: Unpack[LossKeywords],
) -> Tensor: ...
@overload
def fused_contrastive_loss(
    query: Tensor,
    key: Tensor,
    negatives: Tensor | None = None,
    *,
    return_stats: Literal[True],
    **options: Unpack[LossKeywords],
) -> tuple[Tensor, ContrastiveStats]: ...
@overload
def fused_contrastive_loss(
    query: Tensor,
    key: Tensor,
    negatives: Tensor | None = None,
    *,
    return_stats: bool,
    **options: Unpack[LossKeywords],
) -> Tensor | tuple[Tensor, ContrastiveStats]: ...
def fused_contrastive_loss(
    query: Tensor,
    key: Tensor,
    negatives: Tensor | None = None,
    *,
    temperature: float | Tensor = 0.05,
    symmetric: bool = False,
    normalize: bool = True,
    ids: Tensor | None = None,
    negative_ids: Tensor | None = None,
    key_ids: Tensor | None = None,
    same_id: SameId = "mask",
    negative_owner: Tensor | None = None,
    hard_negative_weight: float = 0.0,
    share_negatives: bool = True,
    weights: Tensor | None = None,
    directions: Sequence[Direction] = ONE_WAY,
    partition: Partition = "joint",
    false_negative_margin: float | None = None,
    hardness: float = 0.0,
    hardness_on: HardnessOn = "all",
    label_smoothing: float = 0.0,
    debias: float | Tensor = 0.0,
    exclude_self: bool = False,
    guide_query: Tensor | None = None,
    guide_key: Tensor | None = None,
    guide_negatives: Tensor | None = None,
    guide_margin: float = 0.0,
    guide_margin_type: MarginType = "absolute",
    reduction: Reduction = "mean",
    group: dist.ProcessGroup | None = None,
    gather: Gather = "auto",
    backend: Backend = "auto",
    return_stats: bool = False,
) -> Tensor | tuple[Tensor, ContrastiveStats]:
    """InfoNCE over in-batch and extra negatives, without ever holding the N x M logits.

    With s = 1 / temperature, x^ = x / max(||x||, 1e-12) if normalize else x, K = [key; negatives]
    (M = N + H rows): z[i, j] = s <q^_i, K^_j> + b[i, j]; row term r_i = logsumexp_j z[i, j] - mean
    of z[i, j] over i's positives; column term c_i likewise over the queries of key i; l_i = r_i, or
    (r_i + c_i) / 2 when symmetric. The options below change which logits there are.

    Args:
        query: (N, D) float32, bfloat16, float16, or float64 (torch backend); CPU or CUDA.
        key: (N, D), dtype and device of query; key[i] is the positive of query[i].
        negatives: (H, D) further keys, negatives of every query; or (N, K, D), row i's own K hard
            negatives.
        temperature: > 0, dimensionless; a 0-d tensor gets a gradient.
        symmetric: the mean of query -> key and key -> query, from one pass over the logits: short
            for these two directions with partition="per_direction".
        normalize: cosine similarity if True, plain dot product if False.
        ids: (N,) integers; pairs of equal id mean the same thing.
        negative_ids: (H,) or (N, K) integers, likewise for the negatives.
        key_ids: integers, one per key: the positives of query i are the keys whose id is ids[i];
            key may then have any number of rows. Needs same_id="positive".
        same_id: "mask": a key of equal id is no negative; "positive": it is a further positive.
        negative_owner: (H,) integers; the query to which each row belongs, as its hard negative.
        hard_negative_weight: added to the logit of a query's own hard negatives.
        share_negatives: False: a hard negative counts for its owner only.
        weights: (N,) non-negative weights w of the pairs.
        directions: which logits compete with a pair's own: "query_to_key" (always), and
            "key_to_query", "query_to_query" (other queries), "key_to_key" (other keys, and
            negatives that the pair does not own).
        partition: "joint": one logsumexp over all directions; "per_direction": the mean of a term
            for query_to_key and one for key_to_query.
        false_negative_margin: a candidate is left out if its similarity exceeds the pair's own by
            more than this; owned negatives and positives stay.
        hardness: this times the similarity (a constant without gradient) is added to the logits of
            negatives in query_to_key.
        hardness_on: "all" of them, "in_batch" (those the query does not own), or "owned".
        label_smoothing: the share of the target that is spread evenly over all candidates.
        debias: in [0, 1), a number or (N,): the probability that a negative is in fact a positive;
            the expected share of such negatives is subtracted from the denominator.
        exclude_self: row i of query and key are the same example, which is neither candidate nor
            positive; positives are the other rows of equal id. Needs same_id="positive".
        guide_query: (N, G) embeddings of a frozen guide: candidates that it finds closer than the
            pair by more than guide_margin are left out.
        guide_key: (N, G), likewise of the keys.
        guide_negatives: (H, G) or (N, K, G), likewise of the negatives.
        guide_margin: in units of the guide's cosine similarity; may be negative.
        guide_margin_type: "absolute", or "relative": times the size of the pair's similarity.
        reduction: "mean": sum w l / sum w; "sum": sum w l; "none": (N,) w l.
        group: torch.distributed process group over whose ranks the batch is spread; None: this
            process only.
        gather: with a group, how keys reach the other ranks: "auto", "all_gather" or "ring".
        backend: "auto": Triton on CUDA, PyTorch elsewhere, for float64, and for options that the
            kernels do not have; "triton"; "torch".
        return_stats: also return ContrastiveStats of the batch, computed in the same pass.

    Returns:
        The loss, float32 (float64 for float64 inputs), () or (N,); with return_stats also the
        stats. Gradients flow to query, key, negatives and a tensor temperature, in their dtypes.
        With a group each rank returns W * its part of the whole batch's loss (W ranks), so that the
        mean over ranks is that loss, and gradients averaged over ranks are its gradients; "none"
        gives the rank's own terms. Stats are those of the whole batch. See docs/scaling.md.
        A row without a positive (exclude_self, key_ids) contributes 0 and no weight; where there
        are several positives and none is the row's own, the statistics rank the best of them.

    Raises:
        TypeError: an argument is not a tensor, or ids or owners are not integers.
        ValueError: shapes, dtypes, devices, values or options do not fit; the message names them.
            Values of CUDA tensors are read only when CROSSALIGN_CHECK=1, since that stalls.
            With a group, arguments that differ between ranks: the same text on every rank.
        RuntimeError: a rank of the group died, or did not call in time.

    Cost: 2 N M D operations forward, 6 N M D backward; extra memory O((N + M) D) plus a bounded
    workspace. Deterministic: same inputs and device, same bits. Differentiating twice raises.
    Source: Oord et al. 2018 (InfoNCE); Khosla et al. 2020 (exclude_self: SupCon); Chuang et al.
    2020 (debias); Solatorio 2024 (guides); Zhang et al. 2025 (false_negative_margin,
    Qwen3-Embedding); Lan et al. 2025 (hardness). reference.contrastive_loss is the specification.

    Examples:
        >>> query, key = torch.randn(2, 8, 4, requires_grad=True)
        >>> loss, stats = fused_contrastive_loss(query, key, symmetric=True, return_stats=True)
        >>> loss.backward()
        >>> stats.accuracy.shape
        torch.Size([])
    """
    options = LossOptions(
        symmetric=symmetric,
        normalize=normalize,
        same_id=same_id,
        hard_negative_weight=hard_negative_weight,
        share_negatives=share_negatives,
        directions=directions,
        partition=partition,
        false_negative_margin=false_negative_margin,
        hardness=hardness,
        hardness_on=hardness_on,
        label_smoothing=label_smoothing,
        debias=debias,
        exclude_self=exclude_self,
        guide_margin=guide_margin,
        guide_margin_type=guide_margin_type,
        reduction=reduction,
        group=group,
        gather=gather,
        backend=backend,
        return_stats=return_stats,
    )
    arguments = LossArguments(
        query=query,
        key=key,
        negatives=negatives,
        temperature=temperature,
        ids=ids,
        negative_ids=negative_ids,
        key_ids=key_ids,
        negative_owner=negative_owner,
        weights=weights,
        guide_query=guide_query,
        guide_key=guide_key,
        guide_negatives=guide_negatives,
        options=options,
    )
    if group is not None:
        return loss_across_ranks(arguments)
    return loss_of_one_process(checked(arguments))
