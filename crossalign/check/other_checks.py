"""The checks of pooling, and of what only a GPU does: few programs, captured graphs."""

from __future__ import annotations

import importlib
import pkgutil
from contextlib import ExitStack
from unittest.mock import patch

import torch

from crossalign import reference
from crossalign.check.finding import Finding, Place, assert_same_bits, worst
from crossalign.check.loss_checks import check_options
from crossalign.contrastive.loss import fused_contrastive_loss
from crossalign.pooling.functions import masked_mean_pool, mean_pool_varlen


def check_pooling(place: Place, dtype: torch.dtype = torch.float32) -> Finding:
    """Padded and packed sentences, more tokens than one program takes."""
    batch, tokens, features = (3, 40, 20) if place.is_small else (8, 1100, 264)
    hidden = torch.randn(batch, tokens, features, device=place.device).to(dtype).requires_grad_()
    lengths = torch.randint(1, tokens, (batch,), device=place.device)
    mask = torch.arange(tokens, device=place.device) < lengths[:, None]
    offsets = torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).int()
    upstream = torch.randn(batch, features, device=place.device, dtype=torch.float64)
    wide = hidden.detach().double().requires_grad_()
    packed, wide_packed = (x[mask].detach().requires_grad_() for x in (hidden, wide))
    compared = {}
    for name, leaf, wide_leaf, pooled, truth in (
        (
            "padded",
            hidden,
            wide,
            masked_mean_pool(hidden, mask, normalize=True, backend=place.backend),
            reference.masked_mean_pool(wide, mask, normalize=True),
        ),
        (
            "packed",
            packed,
            wide_packed,
            mean_pool_varlen(packed, offsets, backend=place.backend),
            reference.mean_pool_varlen(wide_packed, offsets),
        ),
    ):
        compared[name] = (pooled, truth)
        (grad,) = torch.autograd.grad(pooled, leaf, upstream.to(pooled.dtype))
        (true_grad,) = torch.autograd.grad(truth, wide_leaf, upstream)
        compared[f"gradient of {name}"] = (grad.flatten(0, -2), true_grad.flatten(0, -2))
    return worst(compared, dtype)


def check_few_programs(place: Place, dtype: torch.dtype) -> Finding:
    """With three programs each walks many tiles, as on the largest batches."""
    import crossalign.kernels

    names = [module.name for module in pkgutil.iter_modules(crossalign.kernels.__path__)]
    modules = [importlib.import_module(f"crossalign.kernels.{name}") for name in names]
    with ExitStack() as stack:
        for module in modules:
            if hasattr(module, "program_slots"):
                stack.enter_context(patch.object(module, "program_slots", lambda x: 3))
        return check_options(place, "positives", dtype)


def check_graph(place: Place, dtype: torch.dtype) -> Finding:
    """A captured graph, replayed on other inputs, gives what a call gives."""
    query, key = (
        torch.randn(3000, 256, device=place.device).to(dtype).requires_grad_() for _ in range(2)
    )

    def both() -> list[torch.Tensor]:
        loss = fused_contrastive_loss(query, key, symmetric=True)
        return [loss.detach(), *torch.autograd.grad(loss, [query, key])]

    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    with torch.cuda.stream(side):
        for _ in range(3):
            both()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = both()
    with torch.no_grad():
        query.copy_(torch.randn_like(query))
    graph.replay()
    return assert_same_bits([captured, both()], "tensors that differ from the replayed graph's")


def check_mixed_product(place: Place) -> Finding:
    """PyTorch's product of 16-bit matrices into float32 sums, on which the backward pass rests."""
    left = torch.randn(300, 517, device=place.device).bfloat16()
    right = torch.randn(517, 104, device=place.device).bfloat16()
    total = torch.full((300, 104), torch.nan, device=place.device)
    for beta in (0, 1):
        torch.addmm(total, left, right, torch.float32, beta=beta, out=total)
    return worst({"sum": (total, 2 * left.double() @ right.double())}, torch.float32)
