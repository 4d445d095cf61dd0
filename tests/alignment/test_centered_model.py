"""AlignmentModel with content tokens and centered vectors, against whole hidden states."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from crossalign import reference
from crossalign.alignment.model import AlignmentModel
from crossalign.pooling.choices import Center, PoolTokens
from tests.support.process_group import run_ranks
from tests.support.tiny_models import tiny_batch, tiny_model

SPECIAL = (1, 2)
PAIRS = 5
Batch = dict[str, Tensor]


def sentences(seed: int) -> Batch:
    """Sentences that begin with token 1, as many tokenizers make them, and one that ends in 2."""
    batch = tiny_batch((7, 4, 3, 5, 6), seed=seed)
    batch["input_ids"][:, 0] = 1
    batch["input_ids"][0, 6] = 2
    return batch


def written_out_vectors(model: Any, batch: Batch, layer: int, pool_tokens: str) -> Tensor:
    """(B, C) float64 means, one sentence and one token at a time."""
    states = model(**batch, output_hidden_states=True).hidden_states[layer].double()
    vectors = []
    for ids, mask, rows in zip(batch["input_ids"], batch["attention_mask"], states, strict=True):
        kept = [
            row
            for token, real, row in zip(ids.tolist(), mask.tolist(), rows, strict=True)
            if real and (pool_tokens == "all" or token not in SPECIAL)
        ]
        vectors.append(torch.stack(kept).sum(dim=0) / len(kept))
    return torch.stack(vectors)


def written_out_loss(
    model: Any, pool_tokens: str, center: str, layer: int, weight: float = 0.0
) -> Tensor:
    sides = [written_out_vectors(model, sentences(seed), layer, pool_tokens) for seed in (1, 2, 3)]
    means = [torch.zeros(sides[0].shape[1], dtype=torch.float64)] * 3
    if center == "batch":
        means = [sum(side.sum(dim=0) for side in sides) / (3 * PAIRS)] * 3  # type: ignore[list-item]
    elif center == "side":
        of_targets = (sides[1].sum(dim=0) + sides[2].sum(dim=0)) / (2 * PAIRS)
        means = [sides[0].sum(dim=0) / PAIRS, of_targets, of_targets]
    query, key, negatives = (side - mean for side, mean in zip(sides, means, strict=True))
    owner = torch.arange(PAIRS) if weight else None
    loss, _ = reference.contrastive_loss(
        query, key, negatives, temperature=0.05, hard_negative_weight=weight, negative_owner=owner
    )
    return loss


@pytest.mark.parametrize("weight", [0.0, 0.5])
@pytest.mark.parametrize("center", ["none", "batch", "side"])
@pytest.mark.parametrize("pool_tokens", ["all", "content"])
def test_loss_and_gradient_equal_written_out_vectors(
    pool_tokens: PoolTokens, center: Center, weight: float
) -> None:
    model = tiny_model("gpt2").double()
    expected = written_out_loss(model, pool_tokens, center, 2, weight)
    expected.backward()
    gradients = [p.grad for p in model.parameters()]
    model.zero_grad()
    alignment = AlignmentModel(
        model,
        layer=2,
        pool_tokens=pool_tokens,
        special_token_ids=SPECIAL,
        center=center,
        hard_negative_weight=weight,
    )
    output = alignment(sentences(1), sentences(2), sentences(3))
    output.loss.backward()
    torch.testing.assert_close(output.contrastive_loss.double(), expected, rtol=1e-6, atol=1e-6)
    for ours, theirs in zip((p.grad for p in model.parameters()), gradients, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-8)


def test_each_aligned_layer_is_centered_apart() -> None:
    model = tiny_model("gpt2")
    losses = [
        AlignmentModel(model, layer=layer, center="batch")(sentences(1), sentences(2)).loss
        for layer in (1, 3, (1, 3))
    ]
    torch.testing.assert_close(losses[2], (losses[0] + losses[1]) / 2)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"center": "mean"}, "center must be one of 'none', 'batch', 'side', got 'mean'"),
        ({"pool_tokens": "words"}, "pool_tokens must be one of 'all', 'content', got 'words'"),
    ],
)
def test_unknown_choices_are_named(option: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AlignmentModel(tiny_model("gpt2"), **option)


def _rank_loss(rank: int, world_size: int, center: Center) -> Any:
    counts = {2: [4, 1], 3: [2, 0, 3]}[world_size]
    start = sum(counts[:rank])
    rows = slice(start, start + counts[rank])
    source, target = ({k: v[rows] for k, v in sentences(seed).items()} for seed in (1, 2))
    model = tiny_model("gpt2").double()
    alignment = AlignmentModel(
        model,
        layer=2,
        pool_tokens="content",
        special_token_ids=SPECIAL,
        center=center,
        group=dist.group.WORLD,
    )
    output = alignment(source, target)
    output.loss.backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    return output.loss.detach(), gradients


@pytest.mark.parametrize("center", ["batch", "side"])
@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_with_uneven_shares_give_one_process_loss_and_gradient(
    world_size: int, center: Center
) -> None:
    results = run_ranks(_rank_loss, world_size, world_size, center)
    model = tiny_model("gpt2").double()
    alignment = AlignmentModel(
        model, layer=2, pool_tokens="content", special_token_ids=SPECIAL, center=center
    )
    loss = alignment(sentences(1), sentences(2)).loss
    loss.backward()
    expected = [p.grad for p in model.parameters() if p.grad is not None]
    mean_loss = torch.stack([result[0] for result in results]).mean()
    torch.testing.assert_close(mean_loss, loss.detach(), rtol=1e-6, atol=1e-6)
    for index, theirs in enumerate(expected):
        ours = torch.stack([result[1][index] for result in results]).mean(dim=0)
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)
