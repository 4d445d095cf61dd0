"""GradientCache in DistributedDataParallel: real processes against one, reductions counted."""

from __future__ import annotations

import torch.distributed as dist
from process_group import run_ranks
from test_gradient_cache import ROWS, assert_equal_gradients, gradients, make_encoder, rows
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from crossalign.gradient_cache import GradientCache


def count_reductions(module: DistributedDataParallel) -> list[int]:
    """A list that gets the size of every bucket that the module all-reduces."""
    sizes: list[int] = []

    def hook(_, bucket):
        sizes.append(bucket.buffer().numel())
        buffer = bucket.buffer().div_(dist.get_world_size())
        future = dist.all_reduce(buffer, async_op=True).get_future()
        return future.then(lambda done: done.value()[0])

    module.register_comm_hook(None, hook)
    return sizes


def _gradients_of_rank(rank: int) -> dict[str, tuple[list[Tensor | None], list[int]]]:
    """By case, the gradients after two calls, and the sizes of what they reduced."""
    own = slice(0, 5) if rank == 0 else slice(5, ROWS)  # 5 and 2 rows: 2 chunks and 1
    sides = [rows()[own], rows(seed=2)[own], rows(3, seed=3)]
    results = {}
    for name in ("module", "closure", "frozen side", "unused"):
        encoder = make_encoder(dropout=0.0)
        if name == "unused":
            encoder.extra = nn.Linear(2, 2).double()
        parallel = DistributedDataParallel(encoder, find_unused_parameters=name == "unused")
        sizes = count_reductions(parallel)

        def encode(inputs: Tensor, parallel=parallel, name=name) -> Tensor:
            embedded = parallel(inputs)
            is_negative = name == "frozen side" and len(inputs) == 3  # no chunk of another side
            return embedded.detach() if is_negative else embedded

        chunk = 4
        cache = (
            GradientCache(parallel, summed_loss, chunk)
            if name == "module"
            else GradientCache(encode, summed_loss, chunk, module=parallel)
        )
        for _ in range(2):  # the second step meets whatever state the first one left
            encoder.zero_grad()
            cache.backward(*sides)
        results[name] = (gradients(encoder), sizes)
    return results


def summed_loss(query: Tensor, key: Tensor, negatives: Tensor) -> Tensor:
    """A sum over pairs, so that the ranks' average times their number is the whole."""
    return ((query - key).square().sum(1) + (query @ negatives.T).exp().sum(1)).sum()


def test_two_processes_reduce_once_and_equal_one() -> None:
    ranks = run_ranks(_gradients_of_rank, 2)
    for name, (ours, sizes) in ranks[0].items():
        encoder = make_encoder(dropout=0.0)
        num_parameters = sum(parameter.numel() for parameter in encoder.parameters())
        query, key, negatives = (encoder(side) for side in (rows(), rows(seed=2), rows(3, seed=3)))
        if name == "frozen side":
            negatives = negatives.detach()
        summed_loss(query, key, negatives).backward()
        theirs = [gradient / 2 for gradient in gradients(encoder)]
        assert_equal_gradients(ours[: len(theirs)], theirs)
        assert_equal_gradients(ranks[1][name][0][: len(theirs)], theirs)
        extra = 6 if name == "unused" else 0
        assert sizes == [num_parameters + extra] * 2  # one reduction in each of the two calls
