"""fused_contrastive_loss(), ContrastiveLoss and ContrastiveStats: docstring, checks, the loss."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from crossalign.argument_checks import check_positive_finite, values_may_be_read
from crossalign.backends import choose_backend
from crossalign.contrastive.across_ranks.loss import loss_across_ranks
from crossalign.contrastive.arguments import check_arguments, check_options
from crossalign.contrastive.one_pass import one_pass_loss, one_pass_takes
from crossalign.contrastive.ops import contrastive_sums, pair_losses
from crossalign.contrastive.problem import LossArguments
from crossalign.contrastive.row_loss import row_loss
from crossalign.contrastive.terms import (
    build_problem,
    contrastive_stats,
    reduce_terms,
    warn_without_negatives,
)


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
    same_id: str = "mask",
    negative_owner: Tensor | None = None,
    hard_negative_weight: float = 0.0,
    share_negatives: bool = True,
    weights: Tensor | None = None,
    reduction: str = "mean",
    group: Any = None,
    gather: str = "auto",
    backend: str = "auto",
    return_stats: bool = False,
) -> Any:
    """InfoNCE over in-batch and extra negatives, without ever holding the N x M logits.

    With s = 1 / temperature, x^ = x / max(||x||, 1e-12) if normalize else x, K = [key; negatives]
    (M = N + H rows): z[i, j] = s <q^_i, K^_j> + b[i, j]; row term r_i = logsumexp_j z[i, j] - mean
    of z[i, j] over i's positives; column term c_i likewise over the queries of key i; l_i = r_i, or
    (r_i + c_i) / 2 when symmetric.

    Args:
        query: (N, D) float32, bfloat16, float16, or float64 (torch backend); CPU or CUDA.
        key: (N, D), dtype and device of query; key[i] is the positive of query[i].
        negatives: (H, D) further keys, negatives of every query.
        temperature: > 0, dimensionless; a 0-d tensor gets a gradient.
        symmetric: the mean of query -> key and key -> query, from one pass over the logits.
        normalize: cosine similarity if True, plain dot product if False.
        ids: (N,) integers; pairs of equal id mean the same thing.
        negative_ids: (H,) integers, likewise for the negatives.
        same_id: "mask": a key of equal id is no negative; "positive": it is a further positive.
        negative_owner: (H,) integers; the query whose own hard negative each row is.
        hard_negative_weight: added to the logit of a query's own hard negatives.
        share_negatives: False: a hard negative counts for its owner only.
        weights: (N,) non-negative weights w of the pairs.
        reduction: "mean": sum w l / sum w; "sum": sum w l; "none": (N,) w l.
        group: torch.distributed process group over whose ranks the batch is spread; None: this
            process alone.
        gather: with a group, how the keys meet: "auto", "all_gather" or "ring".
        backend: "auto": Triton on CUDA, PyTorch elsewhere and for float64; "triton"; "torch".
        return_stats: also return ContrastiveStats of the batch, computed in the same pass.

    Returns:
        The loss, float32 (float64 for float64 inputs), () or (N,); with return_stats also the
        stats. Gradients flow to query, key, negatives and a tensor temperature, in their dtypes.
        With a group each rank returns W * its part of the whole batch's loss (W ranks), so that the
        mean over ranks is that loss, and gradients averaged over ranks are its gradients; "none"
        gives the rank's own terms. Stats are those of the whole batch. See docs/scaling.md.

    Raises:
        TypeError: an argument is not a tensor, or ids or owners are not integers.
        ValueError: shapes, dtypes, devices, values or options do not fit; the message names them.
            Values of CUDA tensors are read only when CROSSALIGN_CHECK=1, since that stalls.
            With a group, arguments that differ between ranks: the same text on every rank.
        RuntimeError: a rank of the group died, or did not call in time.

    Cost: 2 N M D operations forward, 6 N M D backward; extra memory O((N + M) D) plus a bounded
    workspace. Deterministic: same inputs and device, same bits. Differentiating twice raises.
    Source: Oord et al. 2018 (InfoNCE); reference.contrastive_loss is the specification.
    """
    arguments = LossArguments(
        query=query,
        key=key,
        negatives=negatives,
        temperature=temperature,
        symmetric=symmetric,
        normalize=normalize,
        ids=ids,
        negative_ids=negative_ids,
        same_id=same_id,
        negative_owner=negative_owner,
        hard_negative_weight=hard_negative_weight,
        share_negatives=share_negatives,
        weights=weights,
        reduction=reduction,
        group=group,
        gather=gather,
        backend=backend,
        return_stats=return_stats,
    )
    if group is not None:
        return loss_across_ranks(arguments)
    check_arguments(arguments)
    use_triton = choose_backend("fused_contrastive_loss", backend, query) == "triton"
    num_candidates = len(key) + (0 if negatives is None else len(negatives))
    problem = build_problem(arguments)
    in_one_pass = _gradients_fit_one_pass(arguments)
    if in_one_pass and (not use_triton or one_pass_takes(query, problem)):
        one_pass = one_pass_loss if use_triton else row_loss
        loss, sums = one_pass(
            query, key, negatives, problem, weights, reduction, with_stats=return_stats
        )
    else:
        sums = contrastive_sums(
            query,
            key,
            problem,
            negatives=negatives,
            with_stats=return_stats,
            use_triton=use_triton,
        )
        terms = pair_losses(sums, symmetric, use_triton=use_triton)
        loss = reduce_terms(terms, weights, reduction)
    rest = sums.row_negative_lse
    has_none = num_candidates == 1 or (values_may_be_read(rest) and bool((rest == -math.inf).all()))
    if has_none and not torch.compiler.is_compiling():
        warn_without_negatives()
    if return_stats:
        return loss, contrastive_stats(sums, problem.scale)
    return loss


def _gradients_fit_one_pass(arguments: LossArguments) -> bool:
    """Whether a gradient is wanted, and is one number times what the forward pass can form."""
    if arguments.symmetric or arguments.reduction == "none" or not torch.is_grad_enabled():
        return False
    if arguments.weights is not None and arguments.weights.requires_grad:
        return False
    wanted = (*arguments[:3], arguments.temperature)
    return any(isinstance(x, Tensor) and x.requires_grad for x in wanted)


class ContrastiveLoss(nn.Module):
    """fused_contrastive_loss as a module; with learn_temperature it owns its logit scale.

    Args:
        temperature: > 0, dimensionless; the start value when it is learned. A 0-d tensor gets its
            gradient otherwise, and an nn.Parameter is the module's.
        learn_temperature: own the parameter `logit_scale` = log(1 / temperature), used as
            exp(min(logit_scale, log(max_logit_scale))).
        max_logit_scale: upper bound of 1 / temperature when learned.
        options: the keyword options of fused_contrastive_loss that are no tensors.

    Raises:
        TypeError: an option is not one of fused_contrastive_loss, temperature no number or tensor.
        ValueError: as fused_contrastive_loss; max_logit_scale not above 0.
    """

    def __init__(
        self,
        temperature: float | Tensor = 0.05,
        *,
        learn_temperature: bool = False,
        max_logit_scale: float = 100.0,
        symmetric: bool = False,
        normalize: bool = True,
        same_id: str = "mask",
        hard_negative_weight: float = 0.0,
        share_negatives: bool = True,
        reduction: str = "mean",
        group: Any = None,
        gather: str = "auto",
        backend: str = "auto",
        return_stats: bool = False,
    ) -> None:
        super().__init__()
        check_options(reduction, same_id, gather, backend, function="ContrastiveLoss")
        if learn_temperature and isinstance(temperature, Tensor):
            temperature = float(temperature.detach())
        if not isinstance(temperature, Tensor):
            check_positive_finite("ContrastiveLoss", "temperature", temperature)
        check_positive_finite("ContrastiveLoss", "max_logit_scale", max_logit_scale)
        self.temperature = temperature
        self.max_logit_scale = float(max_logit_scale)
        self.logit_scale: nn.Parameter | None = None
        if learn_temperature:
            self.logit_scale = nn.Parameter(torch.tensor(-math.log(temperature)))
        self.options = {
            "symmetric": symmetric,
            "normalize": normalize,
            "same_id": same_id,
            "hard_negative_weight": hard_negative_weight,
            "share_negatives": share_negatives,
            "reduction": reduction,
            "group": group,
            "gather": gather,
            "backend": backend,
            "return_stats": return_stats,
        }

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        negatives: Tensor | None = None,
        *,
        ids: Tensor | None = None,
        negative_ids: Tensor | None = None,
        negative_owner: Tensor | None = None,
        weights: Tensor | None = None,
    ) -> Any:
        """The loss (and stats) of one batch; arguments as in fused_contrastive_loss."""
        temperature = self.temperature
        if self.logit_scale is not None:
            temperature = (-self.logit_scale.clamp(max=math.log(self.max_logit_scale))).exp()
        return fused_contrastive_loss(
            query,
            key,
            negatives,
            temperature=temperature,
            ids=ids,
            negative_ids=negative_ids,
            negative_owner=negative_owner,
            weights=weights,
            **self.options,
        )

    def extra_repr(self) -> str:
        return ", ".join(
            [f"temperature={self.temperature}", f"learn_temperature={self.logit_scale is not None}"]
            + [f"{name}={value!r}" for name, value in self.options.items()]
        )
