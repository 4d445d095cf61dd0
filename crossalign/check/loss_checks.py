"""The checks of the losses: sizes that reach several tiles and chunks, and every option."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from crossalign import reference
from crossalign.check.finding import Finding, Place, assert_same_bits, worst
from crossalign.check.truth import sampled_truth
from crossalign.contrastive.loss import fused_contrastive_loss
from crossalign.contrastive.sigmoid.loss import fused_sigmoid_loss

SAMPLE = 64  # queries and keys whose gradients are compared


def check_loss(
    place: Place,
    dtype: torch.dtype = torch.float32,
    *,
    symmetric: bool = False,
    temperature: float = 0.05,
    learned: bool = False,
    pairs: int = 0,
    features: int = 0,
) -> Finding:
    """Loss, and a sample of all gradients, over several chunks of the backward pass."""
    default_pairs = 2500 if place.device == "cpu" else 2 * 8192 + 257
    pairs, features = pairs or default_pairs, features or (96 if place.device == "cpu" else 1024)
    if place.is_small:
        pairs, features = 70, 20
    query, key = _pairs(pairs, features, dtype, place)
    weights = torch.rand(pairs, device=place.device) + 0.1
    given: Any = temperature
    leaves = [query, key]
    if learned:
        given = torch.tensor(temperature, device=place.device, requires_grad=True)
        leaves.append(given)
    loss = fused_contrastive_loss(
        query,
        key,
        temperature=given,
        symmetric=symmetric,
        weights=weights,
        reduction="sum",
        backend=place.backend,
    )
    grads = torch.autograd.grad(loss, leaves)
    sample = torch.randperm(pairs, device=place.device)[:SAMPLE]
    # A float32 temperature is not the number it was made from.
    exact = float(given.detach()) if learned else temperature
    truth = sampled_truth(query, key, weights, exact, symmetric, sample)
    compared = {
        "loss": (loss, truth.loss),
        "gradient of query": (grads[0][sample], truth.grad_query),
        "gradient of key": (grads[1][sample], truth.grad_key),
    }
    if learned:
        compared["gradient of temperature"] = (grads[2], truth.grad_temperature)
    return worst(compared, dtype)


OPTIONS: dict[str, dict[str, Any]] = {
    "ids": {"given": ("ids", "negative_ids", "weights"), "symmetric": True},
    "positives": {"given": ("ids", "negative_ids"), "same_id": "positive", "symmetric": True},
    "hard negatives": {"given": ("negative_owner",), "hard_negative_weight": 0.7},
    "own negatives": {"given": ("negative_owner", "ids"), "share_negatives": False},
    "dot product": {"given": (), "normalize": False, "temperature": 3.0, "symmetric": True},
}


def check_options(place: Place, name: str, dtype: torch.dtype = torch.float32) -> Finding:
    """Loss, gradients and statistics against the dense reference."""
    pairs, extra, features = (33, 20, 12) if place.is_small else (330, 220, 72)
    options = dict(OPTIONS[name])
    given = options.pop("given")
    query, key = _pairs(pairs, features, dtype, place)
    leaves = [query, key, _rows(extra, features, dtype, place).requires_grad_()]
    for option, count in (("ids", pairs), ("negative_ids", extra)):
        if option in given:
            options[option] = torch.randint(pairs // 3, (count,), device=place.device)
    if "negative_owner" in given:
        options["negative_owner"] = torch.randint(pairs, (extra,), device=place.device)
    if "weights" in given:
        options["weights"] = torch.rand(pairs, device=place.device) + 0.1
    query, key, negatives = leaves
    loss, stats = fused_contrastive_loss(
        query, key, negatives, **options, backend=place.backend, return_stats=True
    )
    wide = [leaf.detach().double().requires_grad_() for leaf in leaves]
    truth, true_stats = reference.contrastive_loss(*wide, **options)
    compared = {"loss": (loss, truth)}
    compared |= {name: (value, true_stats[name]) for name, value in stats._asdict().items()}
    compared |= _gradients(loss, leaves, truth, wide)
    return worst(compared, dtype)


def check_sigmoid(place: Place, dtype: torch.dtype = torch.float32) -> Finding:
    """Loss and gradients of the pairwise sigmoid loss, with learned temperature and bias."""
    pairs, features = (40, 12) if place.is_small else (600, 72)
    query, key = _pairs(pairs, features, dtype, place)
    scalars = [torch.tensor(v, device=place.device).requires_grad_() for v in (0.1, -10.0)]
    ids = torch.randint(pairs, (pairs,), device=place.device)
    leaves = [query, key, *scalars]
    loss = fused_sigmoid_loss(
        query, key, temperature=scalars[0], bias=scalars[1], ids=ids, backend=place.backend
    )
    wide = [leaf.detach().double().requires_grad_() for leaf in leaves]
    truth = reference.sigmoid_loss(wide[0], wide[1], temperature=wide[2], bias=wide[3], ids=ids)
    return worst({"loss": (loss, truth)} | _gradients(loss, leaves, truth, wide), dtype)


def check_repeatability(place: Place, dtype: torch.dtype = torch.float32) -> Finding:
    """The same input gives the same bits; where an error moves, programs race."""
    pairs, features, runs = (3000, 64, 3) if place.device == "cpu" else (40_000, 256, 5)
    if place.is_small:
        pairs, features, runs = 70, 20, 2
    query, key = _pairs(pairs, features, dtype, place)
    seen = []
    for _ in range(runs):
        terms = fused_contrastive_loss(
            query, key, symmetric=True, reduction="none", backend=place.backend
        )
        seen.append([terms.detach(), *torch.autograd.grad(terms.sum(), [query, key])])
    return assert_same_bits(seen, f"tensors that differ in {runs} runs")


def _gradients(
    loss: Tensor, leaves: list[Tensor], truth: Tensor, wide: list[Tensor]
) -> dict[str, tuple[Tensor, Tensor]]:
    pairs = zip(torch.autograd.grad(loss, leaves), torch.autograd.grad(truth, wide), strict=True)
    return {f"gradient of input {index}": pair for index, pair in enumerate(pairs)}


def _rows(count: int, features: int, dtype: torch.dtype, place: Place) -> Tensor:
    """Rows of different length."""
    rows = torch.randn(count, features, device=place.device)
    return (rows * (0.3 + 2 * torch.rand(count, 1, device=place.device))).to(dtype)


def _pairs(count: int, features: int, dtype: torch.dtype, place: Place) -> tuple[Tensor, Tensor]:
    """Queries, and keys near them, so that the positives' probabilities spread over (0, 1)."""
    query = _rows(count, features, dtype, place)
    key = (0.6 * query.float() + _rows(count, features, torch.float32, place)).to(dtype)
    return query.requires_grad_(), key.requires_grad_()
