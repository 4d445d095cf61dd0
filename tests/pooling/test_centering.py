"""Centered sentence vectors against written-out float64 arithmetic, on one rank and on several."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from crossalign.pooling.centering import center_vectors
from crossalign.pooling.choices import Center
from crossalign.pooling.content_tokens import content_mask
from tests.support.process_group import run_ranks

WIDTH = 5


def vectors(count: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, WIDTH, generator=generator, dtype=torch.float64).to(dtype) + 3.0


def written_out(parts: Sequence[Tensor], center: str) -> list[Tensor]:
    """Feature by feature, sentence by sentence, with Python's own float64 numbers."""
    query, key, negatives = parts
    sides = {
        "batch": [[query, key, negatives]] * 3,
        "side": [[query], [key, negatives], [key, negatives]],
    }[center]
    centered = []
    for part, averaged in zip((query, key, negatives), sides, strict=True):
        rows = [row for each in averaged for row in each.tolist()]
        means = [sum(row[column] for row in rows) / len(rows) for column in range(WIDTH)]
        centered.append(
            torch.tensor(
                [[value - mean for value, mean in zip(row, means, strict=True)] for row in part],
                dtype=torch.float64,
            ).reshape(-1, WIDTH)
        )
    return centered


@pytest.mark.parametrize("center", ["batch", "side"])
@pytest.mark.parametrize("count", [0, 3])
def test_center_subtracts_the_written_out_mean(center: Center, count: int) -> None:
    parts = vectors(4, 1), vectors(4, 2), vectors(count, 3)
    found = center_vectors(*parts, center=center)
    for ours, theirs in zip(found, written_out(parts, center), strict=True):
        assert ours is not None
        torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=1e-13)


def test_center_none_gives_the_very_tensors() -> None:
    query, key = vectors(2, 1), vectors(2, 2)
    assert center_vectors(query, key, center="none") == (query, key, None)


def test_half_precision_vectors_are_centered_in_float32() -> None:
    query, key = (vectors(40, seed, torch.bfloat16) for seed in (1, 2))
    centered, _, _ = center_vectors(query, key, center="side")
    assert centered.dtype == torch.float32
    expected = query.double() - query.double().mean(dim=0)
    torch.testing.assert_close(centered.double(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("center", ["batch", "side"])
def test_gradient_goes_through_the_mean(center: Center) -> None:
    parts = [vectors(count, seed).requires_grad_() for seed, count in enumerate((3, 3, 2))]

    def product(*parts: Tensor) -> Tensor:
        query, key, negatives = center_vectors(*parts, center=center)
        assert negatives is not None
        return (query**3).sum() + (key**2 * query).sum() + (negatives**3).sum()

    assert torch.autograd.gradcheck(product, parts)


def test_unknown_center_is_named() -> None:
    with pytest.raises(
        ValueError, match="center must be one of 'none', 'batch', 'side', got 'median'"
    ):
        center_vectors(vectors(2, 1), vectors(2, 2), center="median")  # type: ignore[arg-type]


def shares(world_size: int) -> list[list[int]]:
    """Rows of query and key, and of negatives, on each rank; one rank has none."""
    return {2: [[3, 3, 2], [1, 1, 0]], 3: [[2, 2, 1], [0, 0, 0], [3, 3, 2]]}[world_size]


def _centered_share(rank: int, world_size: int, center: Center) -> Any:
    parts = []
    for side in range(3):
        counts = [share[side] for share in shares(world_size)]
        whole = vectors(sum(counts), side)
        parts.append(whole.split(counts)[rank].clone().requires_grad_())
    centered = center_vectors(*parts, center=center, group=dist.group.WORLD)
    loss = torch.zeros((), dtype=torch.float64)
    for side, part in enumerate(centered):
        assert part is not None
        loss = loss + ((side + 1) * part**3).sum()
    loss.backward()
    return [part.detach() for part in centered], [part.grad for part in parts]


@pytest.mark.parametrize("center", ["batch", "side"])
@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_with_uneven_shards_give_what_one_process_gives(world_size: int, center: str) -> None:
    results = run_ranks(_centered_share, world_size, world_size, center)
    parts = []
    for side in range(3):
        total = sum(share[side] for share in shares(world_size))
        parts.append(vectors(total, side).requires_grad_())
    centered = written_out([part.detach() for part in parts], center)
    # The derivative of sum_i w y_i^3 with y = x - mean(x), taken by hand: 3 w y^2 minus its mean.
    slopes = [3 * (side + 1) * part**2 for side, part in enumerate(centered)]
    gradients = written_out(slopes, center)
    for side in range(3):
        for found, expected in ((0, centered), (1, gradients)):
            whole = torch.cat([result[found][side] for result in results])
            torch.testing.assert_close(whole, expected[side], rtol=1e-12, atol=1e-12)


def test_content_mask_leaves_out_padding_and_special_tokens_anywhere() -> None:
    input_ids = torch.tensor([[1, 7, 9, 2], [1, 2, 0, 0], [7, 1, 8, 0]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]])
    found = content_mask(input_ids, mask, torch.tensor([1, 2]))
    assert found.tolist() == [[0, 1, 1, 0], [0, 0, 0, 0], [1, 0, 1, 0]]
    assert found.dtype == mask.dtype
    assert mask.sum() == 9  # the caller's mask stays as it is


def test_content_mask_without_special_tokens_is_the_mask() -> None:
    mask = torch.tensor([[True, False]])
    found = content_mask(torch.tensor([[3, 4]]), mask, torch.tensor([], dtype=torch.long))
    assert found.tolist() == [[True, False]]
