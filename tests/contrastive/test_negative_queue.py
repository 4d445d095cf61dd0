"""NegativeQueue: order, ids, the loss it feeds, checkpoints, several ranks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from crossalign import NegativeQueue, fused_contrastive_loss
from tests.support.process_group import run_ranks

STEPS = 4


def keys_of(step: int, rows: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(rows, 6, dtype=torch.float64, generator=generator)


def ids_of(step: int, rows: int = 5) -> Tensor:
    return 10 * step + torch.arange(rows) % 3


def same(found: Tensor | None, expected: Tensor | None) -> bool:
    return found is not None and expected is not None and torch.equal(found, expected)


def test_first_in_is_first_out() -> None:
    queue = NegativeQueue(12)
    assert len(queue) == 0 and queue.negatives is None and queue.negative_ids is None
    for step in range(STEPS):
        queue.push(keys_of(step).requires_grad_(), ids_of(step))
        expected = torch.cat([keys_of(each) for each in range(step + 1)])[-12:]
        ids = torch.cat([ids_of(each) for each in range(step + 1)])[-12:]
        assert same(queue.negatives, expected) and same(queue.negative_ids, ids)
        assert not any(tensor.requires_grad for tensor in queue.state_dict(keep_vars=True).values())
    queue.push(keys_of(9, 20), ids_of(9, 20))
    assert same(queue.negatives, keys_of(9, 20)[-12:]) and len(queue) == 12


def test_a_push_before_the_backward_changes_no_gradient() -> None:
    """A ring that is written in place would spoil what the loss kept for its backward."""
    query, key = keys_of(20).requires_grad_(), keys_of(21)
    ids = torch.tensor([0, 7, 8, 1, 9])
    queue = NegativeQueue(8)
    queue.push(keys_of(0), ids_of(0))
    (expected,) = torch.autograd.grad(
        fused_contrastive_loss(query, key, keys_of(0), ids=ids, negative_ids=ids_of(0)), query
    )
    loss = fused_contrastive_loss(
        query, key, queue.negatives, ids=ids, negative_ids=queue.negative_ids
    )
    queue.push(key, ids)
    loss.backward()
    assert same(query.grad, expected)


def test_a_checkpoint_resumes_it() -> None:
    queue, again = NegativeQueue(12), NegativeQueue(12)
    for step in range(STEPS):
        queue.push(keys_of(step), ids_of(step))
    inside = torch.nn.ModuleDict({"queue": queue})
    state = {name: tensor.clone() for name, tensor in inside.state_dict().items()}
    torch.nn.ModuleDict({"queue": again}).load_state_dict(state)
    for each in (queue, again):
        each.push(keys_of(9), ids_of(9))
    assert same(again.negatives, queue.negatives)
    assert same(again.negative_ids, queue.negative_ids)
    smaller = NegativeQueue(4)
    smaller.load_state_dict({name.removeprefix("queue."): each for name, each in state.items()})
    assert same(smaller.negatives, state["queue.keys"][-4:])
    assert smaller.negatives.dtype == torch.float64
    empty = NegativeQueue(12)
    empty.load_state_dict(NegativeQueue(12).state_dict())
    assert empty.negatives is None


def test_ids_are_optional_but_not_now_and_then() -> None:
    queue = NegativeQueue(12)
    queue.push(keys_of(0))
    assert queue.negative_ids is None and len(queue) == 5
    with pytest.raises(ValueError, match=r"ids must come with every push .* got some after none"):
        queue.push(keys_of(1), ids_of(1))
    queue = NegativeQueue(12)
    queue.push(keys_of(0), ids_of(0))
    with pytest.raises(ValueError, match=r"ids must come with every push .* got none after some"):
        queue.push(keys_of(1))


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="size must be at least 1, got 0"):
        NegativeQueue(0)
    with pytest.raises(TypeError, match="size must be an integer, got float"):
        NegativeQueue(8.0)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"group must be a torch\.distributed process group"):
        NegativeQueue(8, group="ranks")
    queue = NegativeQueue(12)
    queue.push(keys_of(0), ids_of(0))
    with pytest.raises(TypeError, match=r"keys must be a torch\.Tensor, got list"):
        queue.push([1.0])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"keys must have the 6 features of those stored"):
        queue.push(torch.zeros(2, 5, dtype=torch.float64), ids_of(0, 2))
    with pytest.raises(ValueError, match=r"keys must have the dtype of those stored .*float32;"):
        queue.push(torch.zeros(2, 6), ids_of(0, 2))
    with pytest.raises(ValueError, match=r"ids must have shape \(5,\), one per key, got \(2,\)"):
        queue.push(keys_of(1), ids_of(1, 2))
    with pytest.raises(ValueError, match="keys must be a dense tensor, got"):
        queue.push(keys_of(1).to_sparse(), ids_of(1))
    with pytest.raises(ValueError, match="keys must hold data, got a meta tensor"):
        queue.push(keys_of(1).to("meta"), ids_of(1))
    with pytest.raises(ValueError, match=r"ids must be on the device of keys \(cpu\), got meta"):
        queue.push(keys_of(1), ids_of(1).to("meta"))
    assert NegativeQueue(np.int64(3)).size == 3  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="ids must hold integers"):
        queue.push(keys_of(1), keys_of(1)[:, 0])


ROWS_OF_RANK = [[(0, 3), (3, 5)], [(0, 5), (5, 5)], [(0, 0), (0, 5)], [(0, 1), (1, 5)]]


def _queue_of_rank(rank: int) -> list[Any]:
    group = dist.group.WORLD
    queue = NegativeQueue(12, group=group)
    found = []
    for step, parts in enumerate(ROWS_OF_RANK):
        rows = slice(*parts[rank])
        query, key, ids = keys_of(step + 50)[rows], keys_of(step)[rows], ids_of(step)[rows]
        loss = fused_contrastive_loss(
            query,
            key,
            queue.negatives,
            ids=ids,
            negative_ids=queue.negative_ids,
            reduction="sum",
            group=group,
        )
        queue.push(key, ids)
        found.append((loss, queue.keys, queue.ids, queue.negatives, queue.negative_ids))
    return found


def test_ranks_hold_what_one_process_would() -> None:
    """Queues that start with a rank's own keys differ between ranks, and then their losses do."""
    ranks = run_ranks(_queue_of_rank, 2)
    queue = NegativeQueue(12)
    for step in range(STEPS):
        expected = fused_contrastive_loss(
            keys_of(step + 50),
            keys_of(step),
            queue.negatives,
            ids=ids_of(step),
            negative_ids=queue.negative_ids,
            reduction="sum",
        )
        queue.push(keys_of(step), ids_of(step))
        mean_over_ranks = sum(found[step][0] for found in ranks) / 2
        torch.testing.assert_close(mean_over_ranks, expected, rtol=1e-12, atol=0)
        for found in ranks:
            assert torch.equal(found[step][1], queue.keys)
            assert torch.equal(found[step][2], queue.ids)
        for index, whole in ((3, queue.keys), (4, queue.ids)):
            shares = [found[step][index] for found in ranks]
            assert torch.equal(torch.cat(shares), whole)


def _bad_push_of_rank(rank: int) -> None:
    queue = NegativeQueue(12, group=dist.group.WORLD)
    queue.push(keys_of(0)[:, : 6 - rank])


def test_ranks_that_differ_hear_of_it() -> None:
    for error in run_ranks(_bad_push_of_rank, 2, expect_errors=True):
        assert error.kind == "ValueError"
        assert "NegativeQueue: columns" in error.message, error.message
