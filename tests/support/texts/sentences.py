"""Random sentences over the vocabulary of the tiny tokenizer."""

from __future__ import annotations

import random


def sentences(count: int = 11) -> list[str]:
    choose = random.Random(0)
    return [
        " ".join(f"w{choose.randint(3, 96)}" for _ in range(choose.randint(1, 12)))
        for _ in range(count)
    ]
