"""What a demo gained and what it cost, in words."""

from __future__ import annotations

import torch

from crossalign.demo.measurement import Measurement, gain_and_cost
from crossalign.evaluation.vectors.retrieval import retrieval_rows


def measured(perplexities: dict[str, float], right: int) -> Measurement:
    """Of two languages, of whose four sentences so many find their translation."""
    vectors = {"de": torch.eye(4), "ru": torch.eye(4).roll(1, 0)}
    vectors["ru"][:right] = torch.eye(4)[:right]
    return Measurement(list(retrieval_rows(vectors, 0)), [1.0], perplexities, vectors)


def test_cost_in_perplexity_is_said_in_words_beside_the_gain() -> None:
    before = measured({"de": 10.0, "ru": 20.0}, right=0)
    words = gain_and_cost(before, measured({"de": 11.0, "ru": 20.4}, right=4), 0)
    assert words == (
        "Gained: at layer 0, 100.0 % of sentences find their translation first, 0.0 % before. "
        "Cost: perplexity rose by 6.0 % in the mean of the languages, most in German, from 10.00 "
        "to 11.00."
    )
    words = gain_and_cost(before, measured({"de": 9.0, "ru": 19.0}, right=4), 0)
    assert words.endswith("fell by 7.5 % in the mean of the languages, it fell in every language.")
