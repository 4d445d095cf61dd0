"""Scores at the positions that count, against whole logits in float64; what is shared and read."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from crossalign.evaluation import token_scores
from crossalign.evaluation.token_scores import Request, continuation_log_probabilities
from tests.support.tiny_models import tiny_model

# Choices of items: equal beginnings, one text inside another, two equal texts, other boundaries.
REQUESTS = [
    Request([1], [5, 6, 7, 8]),
    Request([1], [5, 6, 9, 8, 4]),
    Request([1], [5, 6]),
    Request([1, 5], [6, 9, 8]),
    Request([1, 5, 6, 9], [8, 4, 4]),
    Request([1], [5, 6, 7, 8]),
    Request([2, 3], [40]),
]


def whole_logits(model: Any, request: Request) -> float:
    """One text, all logits, the softmax in float64."""
    with torch.no_grad():
        logits = model(torch.tensor([request.tokens])).logits[0].double()
    places = range(len(request.context), len(request.tokens))
    return sum(
        float(logits[place - 1].log_softmax(dim=0)[request.tokens[place]]) for place in places
    )


@pytest.mark.parametrize("batch_size", [1, 3, 16])
@pytest.mark.parametrize("name", ["gpt2", "gemma2", "granite", "phi", "opt"])
def test_scores_equal_whole_logits(
    name: str, batch_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_scores, "_LOGITS_AT_A_TIME", 200)  # two positions at a time
    model = tiny_model(name)
    found = continuation_log_probabilities(model, REQUESTS, batch_size=batch_size)
    expected = [whole_logits(model, request) for request in REQUESTS]
    assert found == pytest.approx(expected, rel=1e-5)
    assert found[0] == found[5]


def test_positions_that_neighbors_share_are_scored_once(monkeypatch: pytest.MonkeyPatch) -> None:
    scored = 0
    original = token_scores._target_scores

    def counted(states: torch.Tensor, *rest: Any) -> torch.Tensor:
        nonlocal scored
        scored += len(states)
        return original(states, *rest)

    monkeypatch.setattr(token_scores, "_target_scores", counted)
    model = tiny_model("gpt2")
    prefix = list(range(10, 30))
    items = [Request([1], [*prefix, choice, 5, 6]) for choice in (40, 41, 42)]
    found = continuation_log_probabilities(model, items, batch_size=8)
    assert scored == 20 + 3 * 3
    assert found == pytest.approx([whole_logits(model, each) for each in items], rel=1e-5)


def test_no_logits_are_formed_but_those_that_count(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    seen: list[torch.Size] = []
    model.lm_head.register_forward_hook(lambda *_: seen.append(_[2].shape))
    request = Request(list(range(3, 60)), [9])
    found = continuation_log_probabilities(model, [request], batch_size=8)
    assert seen == [torch.Size([1, 2, 97])]  # the check of the head, of two tokens
    assert found == pytest.approx([whole_logits(model, request)], rel=1e-5)


def test_model_with_logits_of_its_own_is_scored_by_them() -> None:
    model = tiny_model("llama")
    original = model.forward

    def squared(*args: Any, **inputs: Any) -> Any:
        output = original(*args, **inputs)
        output.logits = output.logits**2
        return output

    model.forward = squared
    found = continuation_log_probabilities(model, REQUESTS, batch_size=3)
    assert found == pytest.approx([whole_logits(model, each) for each in REQUESTS], rel=1e-5)


def test_nothing_asked_gives_nothing() -> None:
    assert continuation_log_probabilities(tiny_model("gpt2"), [], batch_size=4) == []
