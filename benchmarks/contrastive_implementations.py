"""Ours, plain PyTorch, and the peers that are installed, behind one call: inputs -> scalar loss."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.contrastive_cases import (
    COMPILED,
    EQUAL_WORK,
    OURS,
    PLAIN,
    SIGMOID,
    TEMPERATURE,
    Inputs,
)
from crossalign.contrastive.loss import fused_contrastive_loss

Loss = Callable[[Inputs], Tensor]

SIGMOID_SCALE, SIGMOID_BIAS = 10.0, -10.0  # where its authors start
MODULES = {
    "memeff": "memeff",
    "inf-cl": "inf_cl",
    "cut-cross-entropy": "cut_cross_entropy",
    "cut-cross-entropy exact": "cut_cross_entropy",
    "liger-kernel": "liger_kernel",
    SIGMOID: "siglip_kernel",
}


def is_installed(name: str) -> bool:
    return name not in MODULES or importlib.util.find_spec(MODULES[name]) is not None


def implementation(name: str, symmetric: bool) -> Loss:
    """Peers get unit vectors, as they ask for; crossalign normalizes them itself all the same."""
    if name == OURS:
        return lambda inputs: _crossalign(inputs, "auto")
    if name == "crossalign torch":
        return lambda inputs: _crossalign(inputs, "torch")
    if name == PLAIN:
        return lambda inputs: eager(inputs.query, inputs.key, symmetric)
    if name == EQUAL_WORK[0]:
        return lambda inputs: normalizing_eager(inputs.query, inputs.key, symmetric)
    if name in (COMPILED, EQUAL_WORK[1]):
        torch.compiler.reset()
        plain = eager if name == COMPILED else normalizing_eager
        compiled = torch.compile(plain, dynamic=False)
        return lambda inputs: compiled(inputs.query, inputs.key, symmetric)
    if name == SIGMOID:
        return _siglip_kernel
    if name == "memeff":
        return lambda inputs: _memeff(inputs, symmetric)
    one_way = {
        "inf-cl": _inf_cl,
        "cut-cross-entropy": lambda query, key: _cut_cross_entropy(query, key, "high"),
        "cut-cross-entropy exact": lambda query, key: _cut_cross_entropy(query, key, None),
        "liger-kernel": _liger_kernel,
    }[name]
    if not symmetric:
        return lambda inputs: one_way(inputs.query, inputs.key)
    return lambda inputs: (
        (one_way(inputs.query, inputs.key) + one_way(inputs.key, inputs.query)) / 2
    )


def eager(query: Tensor, key: Tensor, symmetric: bool) -> Tensor:
    logits = query @ key.T / TEMPERATURE
    labels = torch.arange(len(query), device=query.device)
    loss = F.cross_entropy(logits, labels)
    return (loss + F.cross_entropy(logits.T, labels)) / 2 if symmetric else loss


def normalizing_eager(query: Tensor, key: Tensor, symmetric: bool) -> Tensor:
    return eager(F.normalize(query, dim=1), F.normalize(key, dim=1), symmetric)


def eager_sigmoid(query: Tensor, key: Tensor) -> Tensor:
    """The loss that siglip-kernel computes, written out: what it is checked against."""
    logits = query @ key.T * SIGMOID_SCALE + SIGMOID_BIAS
    signs = 2 * torch.eye(len(query), dtype=logits.dtype, device=logits.device) - 1
    return -F.logsigmoid(signs * logits).sum() / len(query)


def _crossalign(inputs: Inputs, backend: str) -> Tensor:
    result = fused_contrastive_loss(
        inputs.query, inputs.key, inputs.negatives, backend=backend, **inputs.options
    )
    return result[0] if inputs.options.get("return_stats") else result


def _memeff(inputs: Inputs, symmetric: bool) -> Tensor:
    """Not stable=True, its default, which gives gradients of another scale than the loss has."""
    import memeff

    options = {"temperature": TEMPERATURE, "normalized_inputs": True, "stable": False}
    if symmetric:
        loss = memeff.MemoryEfficientCLIPLoss(**options)
    else:  # similarities differ by at most 2, so a margin of 2 leaves out no negative
        loss = memeff.MemoryEfficientQwen3Loss(margin=2.0, **options)
    result: Tensor = loss(inputs.query, inputs.key)
    return result


def _inf_cl(query: Tensor, key: Tensor) -> Tensor:
    from inf_cl import cal_flash_loss

    return cal_flash_loss(query, key, scale=1 / TEMPERATURE).mean()


def _cut_cross_entropy(query: Tensor, key: Tensor, filter_eps: str | None) -> Tensor:
    from cut_cross_entropy import linear_cross_entropy

    labels = torch.arange(len(query), device=query.device)
    return linear_cross_entropy(query / TEMPERATURE, key, labels, filter_eps=filter_eps)


def _liger_kernel(query: Tensor, key: Tensor) -> Tensor:
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    labels = torch.arange(len(query), device=query.device)
    return liger_fused_linear_cross_entropy(
        query / TEMPERATURE, key, labels, accum_dtype=torch.float32
    )


def _siglip_kernel(inputs: Inputs) -> Tensor:
    from siglip_kernel import fused_siglip_loss

    query = inputs.query
    scale = torch.tensor(SIGMOID_SCALE, device=query.device).log()
    bias = torch.tensor(SIGMOID_BIAS, device=query.device)
    return fused_siglip_loss(query, inputs.key, scale, bias)
