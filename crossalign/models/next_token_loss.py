"""Mean next-token cross-entropy straight from hidden states: no (tokens x vocabulary) logits.

logits[n, v] = cap * tanh(scale * (<h_n, W_v> + bias_v) / cap), or scale * (...) without a cap
loss = mean_n logsumexp_v logits[n, v] - logits[n, label_n]

With liger-kernel on a GPU its kernels do this (fused_cross_entropy). Elsewhere the vocabulary is
walked in blocks: forward for the log-sum-exp, backward for p - 1[v = label]. Each row of the
weight's gradient belongs to one block and is written once. In bfloat16, the exponentials of few
positions are kept from the forward, which spares the backward one of its three products.

Shapes: B sentences, T tokens, C hidden size, V vocabulary, N positions whose label counts.
Accumulation is float32 (float64 for float64), logits included, whatever the dtype of the inputs.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from crossalign.argument_checks import (
    check_dims,
    check_floating,
    check_in_range,
    check_integer,
    check_positive_finite,
    check_same_device,
    check_same_dtype,
    check_size,
    check_tensor,
)
from crossalign.models.fused_cross_entropy import can_fuse, fused_cross_entropy_sum
from crossalign.models.gradient_in_place import gradient_of
from crossalign.precision import accumulator, without_autocast

IGNORED_LABEL = -100
# float32 logits held at a time: 256 MiB, and never more than an eighth of the vocabulary.
_LOGITS_PER_BLOCK = 2**26
# Exponentials kept for the backward: 128 MiB.
_KEPT_IN_BFLOAT16 = 2**26


def language_model_loss(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    bias: Tensor | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
    group: dist.ProcessGroup | None = None,
    count: Tensor | None = None,
    adds_to_grad: bool = False,
) -> Tensor:
    """Mean next-token cross-entropy over the labels that are not -100.

    Position t is scored against labels[:, t + 1], as Hugging Face models do.

    Args:
        hidden: (B, T, C) states after the final norm. Only positions whose label counts are read.
        weight: (V, C) output embedding; dtype of hidden, unless autocast is on: then the products
            take the autocast dtype, as the model's own head would.
        labels: (B, T) integers, -100 = ignored. On the CPU they spare a wait for the GPU.
        bias, scale: (V,) added to the products; a factor of the sum.
        softcap: bounds the logits to (-softcap, softcap).
        group: average over the tokens of all its ranks: each rank returns
            world size * (its own sum) / (count of all), whose mean is the loss of the whole batch.
        count: of the labels to average over, as count_labels gives it; the batch is then a part of
            the one they come from, and no rank waits for another. None: those of this batch.

        adds_to_grad: the backward adds to weight.grad itself, so that no second tensor of its size
            is made. For a leaf whose gradient no hook waits for.

    Returns:
        () float32 (float64 for float64). Without any label that counts: 0, with zero gradients.

    Raises:
        TypeError: an argument is not a tensor, or labels are not integers.
        ValueError: shapes, dtypes or devices do not fit, a label lies outside the vocabulary (read
            on the CPU, elsewhere if CROSSALIGN_CHECK=1), or softcap is not above 0.

    Cost: forward one, backward three products of N * V * C; holds blocks of N x (at most V / 8)
        float32 logits. In bfloat16, for up to 2^26 logits without a softcap, the backward makes two
        products, and 2 bytes a logit are held until then. Deterministic. create_graph=True raises.
    """
    _check_arguments(hidden, weight, labels, bias, softcap)
    targets = labels[:, 1:].reshape(-1)
    counted = (targets != IGNORED_LABEL).nonzero().squeeze(1)  # one wait, if labels are on the GPU
    targets = targets[counted].long()
    check_in_range("language_model_loss", "labels", targets, weight.shape[0], "the vocabulary")
    flat = hidden[:, :-1].reshape(-1, hidden.shape[-1])
    flat = flat.index_select(0, counted.to(hidden.device, non_blocking=True))
    flat, targets = flat.to(product_dtype(hidden)), targets.to(hidden.device, non_blocking=True)
    if can_fuse(flat, scale):
        total = fused_cross_entropy_sum(flat, weight, bias, targets, softcap)
    else:
        total = _LinearCrossEntropy.apply(  # type: ignore[no-untyped-call]
            flat, weight, bias, targets, scale, softcap, adds_to_grad
        )
    if count is None and group is None:
        return total / max(counted.numel(), 1)
    if count is None:
        count = _over_ranks(torch.tensor(counted.numel(), device=hidden.device), group)
    num_ranks = 1 if group is None else dist.get_world_size(group)
    return total * num_ranks / count.clamp(min=1).to(total)


def count_labels(labels: Tensor, device: torch.device, group: dist.ProcessGroup | None) -> Tensor:
    """() labels (B, T) that language_model_loss averages over, of all ranks of the group."""
    return _over_ranks((labels[:, 1:] != IGNORED_LABEL).sum().to(device), group)


def _over_ranks(count: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    if group is not None:
        dist.all_reduce(count, group=group)
    return count


class _LinearCrossEntropy(torch.autograd.Function):
    """Sum over n of the cross-entropy of row n; the block walk described at the top of the file."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,  # (N, C), dtype of the products
        weight: Tensor,  # (V, C)
        bias: Tensor | None,  # (V,)
        targets: Tensor,  # (N,) int64
        scale: float,
        softcap: float | None,
        adds_to_grad: bool,
    ) -> Tensor:
        wide = accumulator(hidden.dtype)
        # The log-sum-exp as (max, sum): their sum would round away digits of a probability near 1.
        row_max = hidden.new_full((hidden.shape[0],), -torch.inf, dtype=wide)
        row_sum, target_logit = torch.zeros_like(row_max), torch.zeros_like(row_max)
        keeps = _keeps_exponentials(hidden, weight, softcap) and any(ctx.needs_input_grad)
        kept: list[Tensor] = []  # of each block: exponentials (N, v), and the (N,) they are below
        with without_autocast(hidden.device.type):
            for start, end in _vocabulary_blocks(hidden.shape[0], weight.shape[0]):
                logits = block_logits(hidden, weight, bias, start, end, scale, softcap)
                column, is_here = _target_columns(targets, start, end)
                picked = logits.gather(1, column[:, None]).squeeze(1)
                target_logit = torch.where(is_here, picked, target_logit)
                higher = torch.maximum(row_max, logits.amax(dim=1))
                exponentials = logits.sub_(higher[:, None]).exp_()
                row_sum = row_sum * (row_max - higher).exp() + exponentials.sum(dim=1)
                row_max = higher
                if keeps:
                    kept += [exponentials.to(hidden.dtype), higher]
        ctx.save_for_backward(hidden, weight, bias, targets, row_max, row_sum, *kept)
        ctx.scale, ctx.softcap = scale, softcap
        ctx.leaf = weight if adds_to_grad and weight.requires_grad else None
        return (row_max - target_logit + row_sum.log()).sum()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "language_model_loss: create_graph must be False, got True; the gradient of the "
                "gradient is not supported"
            )
        hidden, weight, bias, targets, row_max, row_sum, *kept = ctx.saved_tensors
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.zeros_like(hidden, dtype=row_max.dtype)
        # Every row is written below; without positions no product runs, and the gradient is zero.
        grad_weight = torch.zeros_like(weight) if needs_weight and ctx.leaf is None else None
        # Nothing is added to where there is no gradient yet: then no zeros are written either.
        is_first = ctx.leaf is not None and ctx.leaf.grad is None and len(hidden) > 0
        if is_first:
            ctx.leaf.grad = torch.empty_like(ctx.leaf)
        total = None if ctx.leaf is None else gradient_of(ctx.leaf)
        grad_bias = torch.zeros_like(bias) if needs_bias else None
        rows = torch.arange(hidden.shape[0], device=hidden.device)
        factor = upstream * ctx.scale
        with without_autocast(hidden.device.type):
            for block, (start, end) in enumerate(_vocabulary_blocks(len(hidden), len(weight))):
                if kept:
                    exponentials, higher = kept[2 * block : 2 * block + 2]
                    grad = exponentials * ((higher - row_max).exp() / row_sum)[:, None]
                else:
                    logits = block_logits(hidden, weight, bias, start, end, ctx.scale, ctx.softcap)
                    grad = (logits - row_max[:, None]).exp_().div_(row_sum[:, None])
                column, is_here = _target_columns(targets, start, end)
                grad[rows, column] -= is_here.to(grad.dtype)
                if ctx.softcap is not None:
                    grad *= 1 - (logits / ctx.softcap).square_()
                if grad_bias is not None:
                    grad_bias[start:end] = grad.sum(dim=0) * factor
                if grad_weight is not None:
                    grad_weight[start:end] = _product(grad.T, hidden, hidden.dtype) * factor
                if total is not None:
                    _add_product(total[start:end], grad, hidden, factor, is_first)
                if needs_hidden:
                    grad_hidden += _product(grad, weight[start:end], hidden.dtype)
        grad_hidden = (grad_hidden * factor).to(hidden.dtype)
        return (grad_hidden if needs_hidden else None, grad_weight, grad_bias, *[None] * 4)


def _check_arguments(
    hidden: Tensor, weight: Tensor, labels: Tensor, bias: Tensor | None, softcap: float | None
) -> None:
    function = "language_model_loss"
    for name, value in (("hidden", hidden), ("weight", weight), ("labels", labels)):
        check_tensor(function, name, value)
    check_dims(function, "hidden", hidden, "(B, T, C)")
    check_dims(function, "weight", weight, "(V, C)")
    check_dims(function, "labels", labels, "(B, T)")
    check_floating(function, "hidden", hidden)
    check_integer(function, "labels", labels)
    for dim, axis in enumerate("BT"):
        check_size(function, "labels", labels, dim, hidden.shape[dim], f"{axis} of hidden")
    if softcap is not None:
        check_positive_finite(function, "softcap", softcap)
    check_size(function, "weight", weight, 1, hidden.shape[2], "C of hidden")
    if bias is not None:
        check_tensor(function, "bias", bias)
        check_dims(function, "bias", bias, "(V,)")
        check_size(function, "bias", bias, 0, weight.shape[0], "V of weight")
    for name, parameter in (("weight", weight), ("bias", weight if bias is None else bias)):
        check_same_device(function, name, parameter, "hidden", hidden)
        if not torch.is_autocast_enabled(hidden.device.type):
            check_same_dtype(function, name, parameter, "hidden", hidden)


def product_dtype(hidden: Tensor) -> torch.dtype:
    """The dtype in which a linear layer would multiply here: autocast does not change float64."""
    device = hidden.device.type
    if torch.is_autocast_enabled(device) and hidden.dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    return hidden.dtype


def _vocabulary_blocks(positions: int, vocabulary: int) -> list[tuple[int, int]]:
    """[start, end) of each block; a multiple of 8 wide, which matrix units want. None for N = 0."""
    if positions == 0:
        return []
    width = min(-(-vocabulary // 8), max(1, _LOGITS_PER_BLOCK // positions))
    width = -(-width // 8) * 8
    return [(start, min(start + width, vocabulary)) for start in range(0, vocabulary, width)]


def block_logits(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    start: int,
    end: int,
    scale: float,
    softcap: float | None,
) -> Tensor:
    """(N, end - start) logits in the accumulator dtype."""
    logits = _product(hidden, weight[start:end].T, hidden.dtype)
    if bias is not None:
        logits += bias[start:end].to(logits.dtype)
    if scale != 1.0:
        logits *= scale
    if softcap is not None:
        logits = logits.div_(softcap).tanh_().mul_(softcap)
    return logits


def _product(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """a @ b in the accumulator dtype; a GPU takes the operands as `dtype`, for its matrix units."""
    wide = accumulator(dtype)
    if a.is_cuda and dtype != wide:
        return torch.mm(a.to(dtype), b.to(dtype), out_dtype=wide)
    return a.to(wide) @ b.to(wide)


def _add_product(
    total: Tensor, grad: Tensor, hidden: Tensor, factor: Tensor, is_first: bool
) -> None:
    """total += factor * grad.T @ hidden, in one pass where the dtypes are one; is_first: total is
    not read."""
    if not total.is_cuda and total.dtype == grad.dtype:
        total.addmm_(grad.T, hidden.to(grad.dtype) * factor, beta=0 if is_first else 1)
        return
    product = _product(grad.T, hidden, hidden.dtype) * factor
    if is_first:
        total.copy_(product)
    else:
        total += product


def _keeps_exponentials(hidden: Tensor, weight: Tensor, softcap: float | None) -> bool:
    """A gradient in bfloat16 is rounded as they are; a softcap's needs the logits themselves."""
    fits = len(hidden) * len(weight) <= _KEPT_IN_BFLOAT16
    return hidden.dtype == torch.bfloat16 and softcap is None and fits


def _target_columns(targets: Tensor, start: int, end: int) -> tuple[Tensor, Tensor]:
    """Each target's column in the block (clamped into it), and whether it really is there."""
    is_here = (targets >= start) & (targets < end)
    return (targets - start).clamp(0, end - start - 1), is_here
