"""GradientCache in DistributedDataParallel: real processes against one, reductions counted."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from crossalign.contrastive.gradient_cache import GradientCache
from tests.support.gradient_cache_cases import (
    ROWS,
    assert_equal_gradients,
    count_reductions,
    gradients,
    make_encoder,
    rows,
    summed_loss,
)
from tests.support.process_group import run_ranks


def _gradients_of_rank(rank: int) -> dict[str, tuple[list[Tensor | None], list[int]]]:
    """By case, the gradients after two calls, and the sizes of what they reduced."""
    own = slice(0, 5) if rank == 0 else slice(5, ROWS)  # 5 and 2 rows: 2 chunks and 1
    sides = [rows()[own], rows(seed=2)[own], rows(3, seed=3)]
    results = {}
    for name in ("module", "named", "closure", "frozen side", "unused"):
        encoder = make_encoder(dropout=0.0)
        if name == "unused":
            encoder.extra = nn.Linear(2, 2).double()
        parallel = DistributedDataParallel(encoder, find_unused_parameters=name == "unused")
        sizes = count_reductions(parallel)

        def encode(inputs: Tensor, parallel: Any = parallel, name: str = name) -> Tensor:
            embedded = parallel(inputs)
            is_negative = name == "frozen side" and len(inputs) == 3  # no chunk of another side
            return embedded.detach() if is_negative else embedded

        named: dict[str, Any] = {"module": (parallel, None), "named": (encode, parallel)}
        function, module = named.get(name, (encode, None))
        cache = GradientCache(function, summed_loss, 4, module=module)
        for _ in range(2):  # the second step meets whatever state the first one left
            encoder.zero_grad()
            cache.backward(*sides)
        results[name] = (gradients(encoder), sizes)
    return results


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


class Towers(nn.Module):
    """Embeds rows of 1 at their end with one encoder, all others with the other."""

    def __init__(self, of_queries: nn.Module, of_others: nn.Module) -> None:
        super().__init__()
        self.of_queries, self.of_others = of_queries, of_others

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        encoder = self.of_queries if bool(inputs["is_query"].all()) else self.of_others
        return encoder(inputs["x"])


def _towers_of_rank(rank: int) -> tuple[list[list[Tensor | None]], list[list[int]]]:
    """Gradients of either encoder after two calls, and the sizes of what they reduced."""
    own = slice(0, 5) if rank == 0 else slice(5, ROWS)
    encoders = [make_encoder(dropout=0.0) for _ in range(2)]
    parallel = [DistributedDataParallel(encoder) for encoder in encoders]
    sizes = [count_reductions(module) for module in parallel]
    sides = [
        {"x": side, "is_query": torch.full((len(side),), is_query)}
        for side, is_query in (
            (rows()[own], True),
            (rows(seed=2)[own], False),
            (rows(3, seed=3), False),
        )
    ]
    cache = GradientCache(Towers(*parallel), summed_loss, 2)
    for _ in range(2):
        for encoder in encoders:
            encoder.zero_grad()
        cache.backward(*sides)
    return [gradients(encoder) for encoder in encoders], sizes


def test_each_of_two_encoders_reduces_once() -> None:
    """Modules were not looked for inside `encode`: each chunk reduced, four times a call here."""
    ranks = run_ranks(_towers_of_rank, 2)
    encoders = [make_encoder(dropout=0.0) for _ in range(2)]
    num_parameters = sum(parameter.numel() for parameter in encoders[0].parameters())
    key, negatives = encoders[1](rows(seed=2)), encoders[1](rows(3, seed=3))
    summed_loss(encoders[0](rows()), key, negatives).backward()
    for ours, sizes in ranks:
        assert sizes == [[num_parameters] * 2] * 2
        for mine, encoder in zip(ours, encoders, strict=True):
            assert_equal_gradients(mine, [gradient / 2 for gradient in gradients(encoder)])
