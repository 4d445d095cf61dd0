"""The keyed permutation: a bijection of any size, evenly drawn, the same everywhere."""

from __future__ import annotations

import itertools
import math
import tracemalloc
from collections import Counter

import pytest

from crossalign.data.permutation import Permutation, ShuffledStream


def test_every_size_is_permuted() -> None:
    # Up to 64 the network is the smallest one; from there on sizes around powers of 2 and 4.
    for count in [*range(1, 70), 127, 128, 129, 255, 256, 257, 1000, 4095, 4096, 4097, 20_000]:
        assert sorted(Permutation(count, "key")) == list(range(count))


@pytest.mark.parametrize("count", [3, 4])
def test_every_order_is_equally_likely(count: int) -> None:
    """Chi-squared over all orders, at five standard deviations."""
    trials, orders = 600, math.factorial(count)
    seen = Counter(tuple(Permutation(count, f"seed {trial}")) for trial in range(trials))
    expected = trials / orders
    every = itertools.permutations(range(count))
    statistic = sum((seen[order] - expected) ** 2 / expected for order in every)
    assert statistic < (orders - 1) + 5 * math.sqrt(2 * (orders - 1))


def test_neighbors_are_unrelated() -> None:
    """The correlation of neighbors, and of place and element, is noise: 1 / sqrt(20,000)."""
    order = list(Permutation(20_000, "key"))
    assert order != sorted(order)
    for other in (order[1:], range(20_000)):
        pairs = list(zip(order, other, strict=False))
        mean = (20_000 - 1) / 2
        covariance = sum((one - mean) * (two - mean) for one, two in pairs) / len(pairs)
        assert abs(covariance / (20_000**2 / 12)) < 5 / math.sqrt(20_000)


def test_a_slice_is_a_part_of_the_whole() -> None:
    order = list(Permutation(10_000, "key"))  # more than one block
    assert Permutation(10_000, "key").slice(4000, 4200) == order[4000:4200]
    assert Permutation(10_000, "key").slice(7, 7) == []


def test_the_key_decides() -> None:
    assert list(Permutation(50, "a")) == list(Permutation(50, "a"))
    assert list(Permutation(50, "a")) != list(Permutation(50, "b"))
    # Runs that are resumed on another machine or release must find the same order.
    assert Permutation(1000, "pairs 0 0").slice(0, 5) == PINNED


PINNED = [335, 744, 408, 145, 867]


def test_memory_does_not_grow_with_the_size() -> None:
    permutation = Permutation(2**40, "key")
    permutation.slice(0, 8)
    tracemalloc.start()
    elements = permutation.slice(2**39, 2**39 + 1000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(set(elements)) == 1000 and max(elements) < 2**40
    assert peak < 2**20


@pytest.mark.parametrize("count", [0, -1, 2**62 + 1])
def test_a_size_out_of_range_is_an_error(count: int) -> None:
    with pytest.raises(ValueError, match=r"count must lie in 1 to 2\*\*62, got"):
        Permutation(count, "key")


def test_a_stream_never_drops_or_repeats_within_a_pass() -> None:
    stream = ShuffledStream(7, "seed")
    taken = [each for step in range(7) for each in stream.take(3 * step, 3)]
    assert taken == stream.take(0, 21)
    for start in 0, 7, 14:
        assert sorted(taken[start : start + 7]) == list(range(7))
    assert taken[:7] != taken[7:14] != taken[14:]
