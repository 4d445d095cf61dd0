"""Losses of papers and other libraries, written out densely, equal ours with the options named.

memeff 0.3.1 (Qwen3, CLIP and LiT losses): the formulas that its kernels implement. siglip-kernel
0.1.2: siglip_kernel/reference.py, which is called itself where the package is installed.
"""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from crossalign import fused_contrastive_loss, fused_sigmoid_loss
from crossalign.contrastive.choices import Direction

N, D = 12, 6
T = 0.2
WITHIN = {"query_to_query": 0, "key_to_key": 1}


def sides(count: int = 2) -> list[Tensor]:
    made = torch.randn(count, N, D, dtype=torch.float64)
    made[1] += 0.7 * made[0]
    return [side.clone().requires_grad_() for side in made]


def assert_same(ours: Tensor, theirs: Tensor, leaves: list[Tensor]) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=0)
    found = [torch.autograd.grad(each, leaves, retain_graph=True) for each in (ours, theirs)]
    torch.testing.assert_close(*found, rtol=1e-8, atol=1e-11)


def exponentials(left: Tensor, right: Tensor, positive: Tensor, margin: float) -> Tensor:
    """(N, N) e^(similarity / T), 0 where the similarity exceeds the pair's by the margin."""
    similarity = left @ right.T
    return (similarity / T).exp() * (similarity <= positive[:, None] + margin)


@pytest.mark.parametrize("margin", [0.1, -0.2])
@pytest.mark.parametrize("within", [(), ("query_to_query",), ("query_to_query", "key_to_key")])
def test_qwen3_with_a_margin(within: tuple[str, ...], margin: float) -> None:
    """-log e^z / (e^z + sum over what is kept of the query's, and of both sides' own)."""
    leaves = sides()
    units = [F.normalize(side, dim=1) for side in leaves]
    positive = (units[0] * units[1]).sum(1)
    others = 1 - torch.eye(N, dtype=torch.float64)
    total = (positive / T).exp()
    total = total + (exponentials(units[0], units[1], positive, margin) * others).sum(1)
    for name in within:
        side = units[WITHIN[name]]
        total = total + (exponentials(side, side, positive, margin) * others).sum(1)
    theirs = (total.log() - positive / T).mean()
    options: dict[str, Any] = {"directions": ("query_to_key", *within)}
    options |= {"temperature": T, "false_negative_margin": margin}
    assert_same(fused_contrastive_loss(*leaves, **options), theirs, leaves)


@pytest.mark.parametrize("prior", [0.05, 0.6])
def test_debiased_qwen3(prior: float) -> None:
    """e^z + n max((mean of the negatives - prior e^z) / (1 - prior), e^(-1 / T))."""
    leaves = sides()
    query, key = (F.normalize(side, dim=1) for side in leaves)
    others = 1 - torch.eye(N, dtype=torch.float64)
    own = ((query * key).sum(1) / T).exp()
    sums = ((query @ key.T / T).exp() * others).sum(1)
    sums = sums + ((query @ query.T / T).exp() * others).sum(1)
    count = 2 * (N - 1)
    least = torch.tensor(-1 / T, dtype=torch.float64).exp()
    mean = torch.maximum((sums / count - prior * own) / (1 - prior), least)
    theirs = ((own + count * mean).log() - own.log()).mean()
    ours = fused_contrastive_loss(
        *leaves, temperature=T, debias=prior, directions=("query_to_key", "query_to_query")
    )
    assert_same(ours, theirs, leaves)


def test_smoothed_clip_and_a_locked_tower() -> None:
    leaves = sides()
    image, text = (F.normalize(side, dim=1) for side in leaves)
    logits, labels = image @ text.T / T, torch.arange(N)
    theirs = [F.cross_entropy(each, labels, label_smoothing=0.1) for each in (logits, logits.T)]
    ours = fused_contrastive_loss(*leaves, temperature=T, symmetric=True, label_smoothing=0.1)
    assert_same(ours, (theirs[0] + theirs[1]) / 2, leaves)
    locked = [leaves[0], leaves[1].detach()]
    ours = fused_contrastive_loss(*locked, temperature=T, symmetric=True)
    logits = F.normalize(locked[0], dim=1) @ F.normalize(locked[1], dim=1).T / T
    dense = (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
    assert_same(ours, dense, leaves[:1])


def test_gte_sums_both_directions_and_both_sides() -> None:
    leaves = sides()
    query, key = (F.normalize(side, dim=1) for side in leaves)
    is_own = torch.eye(N, dtype=torch.bool)
    blocks = [query @ key.T, key @ query.T]
    blocks += [(side @ side.T).masked_fill(is_own, -torch.inf) for side in (query, key)]
    theirs = torch.cat(blocks, 1).div(T).logsumexp(1) - (query * key).sum(1) / T
    ours = fused_contrastive_loss(*leaves, temperature=T, directions=get_args(Direction))
    assert_same(ours, theirs.mean(), leaves)


def test_nt_xent_is_the_loss_over_both_views_with_ids() -> None:
    leaves = sides()
    units = F.normalize(torch.cat(leaves), dim=1)
    logits = (units @ units.T / T).masked_fill(torch.eye(2 * N, dtype=torch.bool), -torch.inf)
    theirs = F.cross_entropy(logits, torch.arange(2 * N).roll(N))
    both, swapped = torch.cat(leaves), torch.cat(leaves[::-1])
    ours = fused_contrastive_loss(both, swapped, ids=torch.arange(N).repeat(2), temperature=T)
    assert_same(ours, theirs, leaves)


def test_decoupled_and_with_a_margin_on_the_positive() -> None:
    """As docs/loss.md forms them from the terms."""
    leaves = sides()
    query, key = (F.normalize(side, dim=1) for side in leaves)
    logits = query @ key.T / T
    rest = logits.masked_fill(torch.eye(N, dtype=torch.bool), -torch.inf).logsumexp(1)
    terms = fused_contrastive_loss(*leaves, temperature=T, reduction="none").clamp_min(1e-37)
    log_ratio = terms + torch.log(-torch.expm1(-terms))
    assert_same(log_ratio.mean(), (rest - logits.diagonal()).mean(), leaves)
    lowered = logits - torch.eye(N, dtype=torch.float64) * 0.3 / T
    theirs = F.cross_entropy(lowered, torch.arange(N))
    assert_same(F.softplus(log_ratio + 0.3 / T).mean(), theirs, leaves)


def test_supcon_leaves_a_row_out_of_its_positives() -> None:
    """same_id="positive" over the same rows counts the row itself: 8.82, where SupCon is 5.62."""
    rows = torch.randn(64, 32, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(64) % 8
    units = F.normalize(rows.double(), dim=1)
    logits, is_own = units @ units.T / 0.1, torch.eye(64, dtype=torch.bool)
    is_positive = labels[:, None] == labels
    losses = {}
    for name, left_out in (("supcon", is_own), ("with itself", torch.zeros_like(is_own))):
        kept = logits.masked_fill(left_out, -torch.inf)
        chosen = is_positive & ~left_out
        mean = logits.where(chosen, 0).sum(1) / chosen.sum(1)
        losses[name] = float((kept.logsumexp(1) - mean).mean())
    options: dict[str, Any] = {"ids": labels, "same_id": "positive", "temperature": 0.1}
    supcon = float(fused_contrastive_loss(rows, rows, exclude_self=True, **options))
    itself = float(fused_contrastive_loss(rows, rows, **options))
    assert supcon == pytest.approx(losses["supcon"], rel=1e-6)
    assert itself == pytest.approx(losses["with itself"], rel=1e-6)
    assert (round(itself, 2), round(supcon, 2)) == (8.82, 5.62)


def test_siglip() -> None:
    """The sum over all pairs of -log sigmoid(+-(t <q, k> + b)), by the batch size; also by the
    package's own dense reference."""
    leaves = sides()
    temperature, bias = (torch.tensor(x, dtype=torch.float64) for x in (T, -2.0))
    scalars = [temperature.requires_grad_(), bias.requires_grad_()]
    query, key = (F.normalize(side, dim=1) for side in leaves)
    labels = 2 * torch.eye(N, dtype=torch.float64) - 1
    theirs = [-F.logsigmoid(labels * (query @ key.T / scalars[0] + scalars[1])).sum() / N]
    try:
        from siglip_kernel.reference import siglip_loss_reference

        theirs.append(siglip_loss_reference(query, key, 1 / scalars[0], scalars[1]))
    except ImportError:
        pass  # its first line asks for Triton with a GPU on some machines
    for each in theirs:
        ours = fused_sigmoid_loss(*leaves, temperature=scalars[0], bias=scalars[1])
        assert_same(ours, each, [*leaves, *scalars])
