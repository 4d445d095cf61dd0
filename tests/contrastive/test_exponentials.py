"""Tiles of exponentials: of any size they give what the reference gives, without statistics too."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch

from crossalign import fused_contrastive_loss, reference
from crossalign.contrastive.choices import Direction
from crossalign.contrastive.chunked import exponentials, torch_logits

ALL = get_args(Direction)
NUM_PAIRS = 19
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "unbounded": {"temperature": 0.01},
    "margin": {"false_negative_margin": 0.05},
    "margin, unbounded": {"false_negative_margin": 0.05, "temperature": 0.01},
    "margin, no negative left": {"false_negative_margin": -3.0},
    "margin both ways": {"false_negative_margin": 0.05, "symmetric": True},
    "margin, all directions": {"false_negative_margin": 0.05, "directions": ALL},
    "all directions": {"directions": ALL},
    "smoothing": {"label_smoothing": 0.2},
    "debiasing": {"debias": 0.02},
    "smoothing and debiasing": {"label_smoothing": 0.2, "debias": 0.02},
    "smoothing and margin": {"label_smoothing": 0.2, "false_negative_margin": 0.05},
}


@pytest.mark.filterwarnings("ignore:fused_contrastive_loss. no query has a negative")
@pytest.mark.parametrize("num_logits", [1, 24, 2**17], ids=["column", "some", "whole"])
@pytest.mark.parametrize("name", OPTIONS)
def test_tiles_of_any_size_equal_the_reference(
    name: str, num_logits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch_logits, "CPU_CHUNK_LOGITS", 1)
    monkeypatch.setattr(torch_logits, "MIN_ROWS", 6)
    monkeypatch.setattr(exponentials, "TILE_LOGITS", num_logits)
    leaves = [torch.randn(n, 5, dtype=torch.float64) for n in (NUM_PAIRS, NUM_PAIRS, 4)]
    leaves[1] += leaves[0]
    # Without ids and statistics margins are compared tile by tile; with weights the rows differ.
    options: dict[str, Any] = {"temperature": 0.1, "weights": torch.rand(NUM_PAIRS)} | OPTIONS[name]
    leaves = [leaf.requires_grad_() for leaf in leaves]
    got = fused_contrastive_loss(*leaves, **options)
    expected = reference.contrastive_loss(*leaves, **options)[0]
    torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-13)
    of_got, of_expected = (torch.autograd.grad(x, leaves) for x in (got, expected))
    torch.testing.assert_close(of_got, of_expected, rtol=1e-9, atol=1e-12)


def test_a_locked_side_gets_labels_and_shift_of_the_other() -> None:
    """The parts that are not in the workspace reach whichever side wants a gradient."""
    sides = [torch.randn(n, 5, dtype=torch.float64) for n in (NUM_PAIRS, NUM_PAIRS, 4)]
    options: dict[str, Any] = {"temperature": 0.1, "label_smoothing": 0.2}
    for wanted in ((0,), (1,), (2,), (0, 2), (1, 2)):
        leaves = [x.clone().requires_grad_(i in wanted) for i, x in enumerate(sides)]
        got = fused_contrastive_loss(*leaves, **options)
        expected = reference.contrastive_loss(*leaves, **options)[0]
        needed = [leaves[i] for i in wanted]
        of_got, of_expected = (torch.autograd.grad(x, needed) for x in (got, expected))
        torch.testing.assert_close(of_got, of_expected, rtol=1e-9, atol=1e-12)
