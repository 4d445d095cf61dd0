"""The spread loss in training: under DDP, with GradientCache and AlignmentModel, in sub-groups."""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from crossalign.alignment.model import AlignmentModel
from crossalign.contrastive.across_ranks import agreement
from crossalign.contrastive.gradient_cache import GradientCache
from crossalign.contrastive.loss import fused_contrastive_loss
from crossalign.contrastive.module import ContrastiveLoss
from tests.support.process_group import run_ranks
from tests.support.tiny_models import tiny_batch, tiny_model

SCHEDULES = ("all_gather", "ring")
ROWS, NEGATIVES = (3, 5), (2, 0)
FEATURES = 6


def random(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


class Trained(nn.Module):
    """A small encoder and a loss that learns its temperature, in one module."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Sequential(nn.Linear(FEATURES, 8), nn.Tanh(), nn.Linear(8, 4)).double()
        self.loss = ContrastiveLoss(0.2, learn_temperature=True, symmetric=True, **options)

    def forward(self, query: Tensor, key: Tensor, negatives: Tensor) -> Tensor:
        return self.loss(self.encoder(query), self.encoder(key), self.encoder(negatives))


def inputs(rank: int | None = None) -> list[Tensor]:
    """Queries, keys and further negatives of one rank, or of all."""
    whole = [random(1, sum(ROWS), FEATURES), random(2, sum(ROWS), FEATURES)]
    whole.append(random(3, sum(NEGATIVES), FEATURES))
    if rank is None:
        return whole
    splits = (ROWS, ROWS, NEGATIVES)
    return [x.split(list(rows))[rank] for x, rows in zip(whole, splits, strict=True)]


def gradients(module: nn.Module) -> list[Any]:
    return [parameter.grad for parameter in module.parameters()]


def gradients_of_one_process() -> tuple[Tensor, list[Tensor]]:
    trained = Trained()
    loss = trained(*inputs())
    loss.backward()
    return loss.detach(), gradients(trained)


def assert_equal_gradients(ours: list[Tensor], theirs: list[Tensor]) -> None:
    for mine, other in zip(ours, theirs, strict=True):
        # The learned temperature is a float32 parameter.
        tolerance = 1e-12 if other.dtype == torch.float64 else 1e-6
        torch.testing.assert_close(mine, other, rtol=tolerance, atol=tolerance * 1e-2)


def train_under_ddp(rank: int) -> list[Any]:
    results: list[Any] = []
    for gather in SCHEDULES:
        trained = Trained(group=dist.group.WORLD, gather=gather)
        parallel = DistributedDataParallel(trained)
        for _ in range(2):
            parallel.zero_grad()
            loss = parallel(*inputs(rank))
            loss.backward()
        results.append((loss.detach(), gradients(trained)))
    return results


def cache_under_ddp(rank: int) -> list[Any]:
    """Chunks of 2: two of one rank's pairs, three of the other's; and negatives on one."""
    results: list[Any] = []
    for gather in SCHEDULES:
        trained = Trained(group=dist.group.WORLD, gather=gather)
        encoder = DistributedDataParallel(trained.encoder)
        # A loss with a parameter of its own is wrapped on its own.
        loss = DistributedDataParallel(trained.loss)
        value = GradientCache(encoder, loss, 2).backward(*inputs(rank))
        results.append((value, gradients(trained)))
    return results


@pytest.mark.parametrize("worker", [train_under_ddp, cache_under_ddp])
def test_parameter_gradients_averaged_by_ddp_are_those_of_one_process(worker: Any) -> None:
    """Those of the learned temperature too, whose scale a multiplied loss would get wrong."""
    whole, expected = gradients_of_one_process()
    by_rank = run_ranks(worker, 2)
    for index in range(len(SCHEDULES)):
        mean = (by_rank[0][index][0] + by_rank[1][index][0]) / 2
        torch.testing.assert_close(mean, whole, rtol=1e-12, atol=0)
        for results in by_rank:
            assert_equal_gradients(results[index][1], expected)


def cache_with_an_empty_rank(rank: int) -> tuple[Tensor, list[Tensor]]:
    encoder = Trained().encoder

    def loss(query: Tensor, key: Tensor) -> Tensor:
        return fused_contrastive_loss(query, key, group=dist.group.WORLD, temperature=0.3)

    rows = slice(0, 5) if rank == 1 else slice(0, 0)
    parallel = DistributedDataParallel(encoder)
    cache = GradientCache(parallel, loss, 2)
    value = cache.backward(random(1, 5, FEATURES)[rows], random(2, 5, FEATURES)[rows])
    return value, gradients(encoder)


def test_gradient_cache_with_a_rank_that_has_no_rows() -> None:
    encoder = Trained().encoder
    query, key = (encoder(random(seed, 5, FEATURES)) for seed in (1, 2))
    fused_contrastive_loss(query, key, temperature=0.3).backward()
    for _, ours in run_ranks(cache_with_an_empty_rank, 2):
        assert_equal_gradients(ours, gradients(encoder))


def texts() -> dict[str, Tensor]:
    batch = tiny_batch((6, 4), seed=8)
    return {**batch, "labels": batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)}


def align(rank: int | None, group: Any = None) -> tuple[list[Tensor], list[Any]]:
    """Hard negatives for rank 0's pairs only, texts on rank 1 only; rank None: all of them."""
    model = tiny_model("gpt2").double()
    aligned = AlignmentModel(model, group=group, hard_negative_weight=0.5)
    count = {0: 3, 1: 2, None: 5}[rank]
    first = 3 if rank == 1 else 0
    batches = [tiny_batch((7, 4, 1, 5, 6), seed=seed) for seed in (1, 2)]
    source, target = (
        {name: tensor[first : first + count] for name, tensor in batch.items()} for batch in batches
    )
    negatives = tiny_batch((3, 5, 2), seed=3)
    if rank is None:
        query, key, hard = (aligned.embed(batch) for batch in (source, target, negatives))
        contrastive, _ = aligned.contrast(query, key, hard, torch.arange(3))
        output = [contrastive, aligned.next_token_loss(texts())]
    else:
        lm = texts() if rank == 1 else None
        output = list(aligned(source, target, None if rank else negatives, lm)[1:3])
    (output[0] + 1.5 * output[1]).backward()
    return [loss.detach() for loss in output], gradients(model)


def align_in_group(rank: int) -> tuple[list[Tensor], list[Any]]:
    return align(rank, dist.group.WORLD)


def test_alignment_with_negatives_and_texts_on_one_rank_each() -> None:
    """What a rank lacks must not leave the other waiting in a collective."""
    (losses_0, gradients_0), (losses_1, gradients_1) = run_ranks(align_in_group, 2)
    losses, expected = align(None)
    for first, second, whole in zip(losses_0, losses_1, losses, strict=True):
        torch.testing.assert_close((first + second) / 2, whole, rtol=1e-12, atol=1e-14)
    for first, second, whole in zip(gradients_0, gradients_1, expected, strict=True):
        parts = [part for part in (first, second) if part is not None]
        torch.testing.assert_close(sum(parts) / 2, whole, rtol=1e-9, atol=1e-12)


def loss_in_subgroup(rank: int) -> list[tuple[Tensor, Tensor]] | None:
    """Ranks 0 and 2 are one batch; rank 1 is alone, where the group changes nothing."""
    pair, alone = dist.new_group([0, 2]), dist.new_group([1])
    results = []
    for gather in SCHEDULES:
        query, key = (random(seed + rank, 3, 4).requires_grad_() for seed in (10, 20))
        group = alone if rank == 1 else pair
        loss = fused_contrastive_loss(query, key, symmetric=True, group=group, gather=gather)
        loss.backward()
        results.append(
            (
                loss.detach(),
                torch.stack([leaf.grad for leaf in (query, key) if leaf.grad is not None]),
            )
        )
        if rank == 1:
            with pytest.raises(TypeError, match=r"group must be a .* process group"):
                fused_contrastive_loss(query, key, group=pair)
    return results


def test_subgroup_is_a_batch_of_its_own() -> None:
    first, alone, last = run_ranks(loss_in_subgroup, 3)
    for results, ranks in (((first, last), (0, 2)), ((alone,), (1,))):
        leaves = [torch.cat([random(seed + rank, 3, 4) for rank in ranks]) for seed in (10, 20)]
        leaves = [leaf.requires_grad_() for leaf in leaves]
        loss = fused_contrastive_loss(*leaves, symmetric=True)
        loss.backward()
        expected = torch.stack([leaf.grad for leaf in leaves if leaf.grad is not None])
        for index in range(len(SCHEDULES)):
            mean = torch.stack([result[index][0] for result in results]).mean()
            torch.testing.assert_close(mean, loss.detach(), rtol=1e-12, atol=0)
            ours = torch.cat([result[index][1] for result in results], 1) / len(ranks)
            torch.testing.assert_close(ours, expected, rtol=1e-11, atol=1e-14)


def freeze_parts(rank: int) -> list[Tensor | None]:
    """Rank 1 is frozen but for the backward that rank 0 waits for; then all keys are."""
    results: list[Tensor | None] = []
    for gather in SCHEDULES:
        query, key = (random(seed + rank, 3, 4).requires_grad_(rank == 0) for seed in (10, 20))
        options = {"symmetric": True, "group": dist.group.WORLD, "gather": gather}
        fused_contrastive_loss(query, key, **options).backward()
        if rank == 0:
            results += [query.grad, key.grad]
        frozen_key = key.detach()
        query = query.detach().requires_grad_()
        fused_contrastive_loss(query, frozen_key, **options).backward()
        results.append(query.grad)
        with torch.no_grad():
            assert not fused_contrastive_loss(query, key, **options).requires_grad
    return results


def test_ranks_and_keys_may_be_frozen() -> None:
    whole = [torch.cat([random(seed, 3, 4), random(seed + 1, 3, 4)]) for seed in (10, 20)]
    leaves = [leaf.requires_grad_() for leaf in whole]
    fused_contrastive_loss(*leaves, symmetric=True).backward()
    query, key = (2 * leaf.grad for leaf in leaves if leaf.grad is not None)
    first, second = run_ranks(freeze_parts, 2)
    wanted = [query[:3], key[:3], query[:3]] * 2, [query[3:]] * 2
    for ours, expected in zip((*first, *second), (*wanted[0], *wanted[1]), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-11, atol=1e-14)


def compiled_or_cast(rank: int) -> None:
    # TorchDynamo reads .grad of what passes a graph break.
    warnings.filterwarnings("default", message="The .grad attribute of a Tensor that is not a leaf")
    x, key = random(1 + rank, 3, 4).float().requires_grad_(), random(3 + rank, 3, 4).float()

    def loss(x: Tensor) -> Tensor:
        return fused_contrastive_loss(x.sin(), key, symmetric=True, group=dist.group.WORLD)

    expected = torch.autograd.grad(loss(x), x)
    assert torch.equal(
        torch.autograd.grad(torch.compile(loss, backend="eager")(x), x)[0], *expected
    )
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(x)
    assert torch.equal(torch.autograd.grad(value, x)[0], *expected)


def test_compiled_functions_break_their_graph_and_autocast_changes_nothing() -> None:
    run_ranks(compiled_or_cast, 2)


def _told_memory(memory: int, device: torch.device) -> int:
    return memory


def choose_automatically(rank: int) -> list[int]:
    """How many exchanges with neighbors there were, with plenty of memory and with little."""
    exchanges: list[int] = []
    exchange = dist.batch_isend_irecv

    def count(operations: Any) -> Any:
        exchanges[-1] += 1
        return exchange(operations)

    setattr(dist, "batch_isend_irecv", count)  # noqa: B010
    x = random(rank, 3, 4)
    bytes_held = 6 * 4 * (8 + 8 + 8)  # gathered columns, their gradient, the sum it is made of
    for memory_of_rank_1 in (8 * bytes_held, 8 * bytes_held - 1):
        exchanges.append(0)
        memory = memory_of_rank_1 if rank == 1 else 2**40
        setattr(agreement, "memory_bytes", partial(_told_memory, memory))  # noqa: B010
        fused_contrastive_loss(x, x.sin(), group=dist.group.WORLD)
    return exchanges


def test_auto_gathers_while_an_eighth_of_the_smallest_memory_is_enough() -> None:
    assert run_ranks(choose_automatically, 2) == [[0, 1], [0, 1]]
