"""What a number of right answers is worth: Wilson's interval, McNemar's test, Holm's correction."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist


def wilson_interval(correct: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """The accuracies that `correct` of `total` do not contradict.

    Raises:
        ValueError: total below 1, or correct not from 0 to total.
    """
    if total < 1 or not 0 <= correct <= total:
        raise ValueError(f"wilson_interval: 0 <= correct <= total needed, got {correct} of {total}")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share = correct / total
    spread = z * math.sqrt(share * (1 - share) / total + (z / (2 * total)) ** 2)
    center, scale = share + z * z / (2 * total), 1 + z * z / total
    # Exactly the end where all or none are right, which rounding would miss.
    low = (center - spread) / scale if correct > 0 else 0.0
    return low, (center + spread) / scale if correct < total else 1.0


def mcnemar_exact(first: Sequence[bool], second: Sequence[bool]) -> tuple[int, int, float]:
    """Paired test of two models on the same items.

    Returns:
        Items only the first has right, items only the second has right, and the two-sided p:
        how likely so uneven a split of these items is, were it decided by fair coins.
    """
    only_first = sum(a and not b for a, b in zip(first, second, strict=True))
    only_second = sum(b and not a for a, b in zip(first, second, strict=True))
    differing = only_first + only_second
    tail = sum(math.comb(differing, k) for k in range(min(only_first, only_second) + 1))
    return only_first, only_second, min(1.0, 2 * tail / 2**differing)


def holm(p_values: Sequence[float]) -> list[float]:
    """p values corrected for their number: the chance of any false alarm stays below the level."""
    adjusted = [0.0] * len(p_values)
    running = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted
