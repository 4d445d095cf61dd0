"""Texts that begin alike, joined into rows: who sees whom, which models take it, what it saves."""

from __future__ import annotations

import itertools

import pytest
import torch

from crossalign.evaluation import token_scores
from crossalign.evaluation.joined_texts import (
    LEAST_SHARED,
    Row,
    can_join,
    joined_rows,
    longest_row,
    model_inputs,
)
from crossalign.evaluation.token_scores import Request, continuation_log_probabilities
from crossalign.models.hidden_states import hidden_states_at
from tests.support.tiny_models import tiny_model

SHARED = list(range(10, 10 + LEAST_SHARED))
WIDE_WINDOW = {"gemma2": {"sliding_window": 20}, "gpt_neo": {"window_size": 20}}
TEXTS = [
    [1, *SHARED, 40, 41],
    [1, *SHARED, 40, 42, 43],
    [1, *SHARED[:-1], 50, 51, 52],  # shares less with the text before it, and enough
    [1, *SHARED[:-1], 50],  # the beginning of the text before it
    [1, 60, 61],  # a row of its own
]


def test_a_row_holds_what_is_shared_once() -> None:
    joined, alone = joined_rows(TEXTS, most_texts=8, most_tokens=512)
    assert joined.tokens == [*TEXTS[0], 42, 43, 50, 51, 52]
    assert joined.positions == [*range(11), 10, 11, 8, 9, 10]
    assert joined.texts == [0, 1, 2, 3]
    for text, path in zip(TEXTS, joined.paths, strict=False):
        assert [joined.tokens[place] for place in path] == text
        assert [joined.positions[place] for place in path] == list(range(len(text)))
    assert alone == Row([1, 60, 61], [0, 1, 2], [[0, 1, 2]], [4])


def test_rows_are_bounded() -> None:
    def sizes(most_texts: int, most_tokens: int) -> list[int]:
        return [len(row.texts) for row in joined_rows(TEXTS, most_texts, most_tokens)]

    assert sizes(2, 512) == [2, 2, 1]
    assert sizes(8, 13) == [2, 2, 1]  # texts of 11, 12, 11, 9 and 3 tokens
    assert sizes(8, 12) == [1, 1, 2, 1]
    assert sizes(8, 0) == [1, 1, 1, 1, 1]
    long = [[*range(300), number] for number in range(500, 900)]
    assert [len(row.tokens) for row in joined_rows(long, 1000, 512)] == [512, 488]
    assert list(joined_rows([], 8, 512)) == []


@pytest.mark.parametrize(
    ("name", "attention"),
    [
        *itertools.product(["gpt2", "llama", "opt", "phi"], ["eager", "sdpa"]),
        *[("gemma2", "eager"), ("gpt_neo", "eager")],  # transformers has no sdpa for them
    ],
)
def test_joined_texts_have_the_states_they_have_alone(name: str, attention: str) -> None:
    model = tiny_model(name, **WIDE_WINDOW.get(name, {}))
    model.set_attn_implementation(attention)
    assert can_join(model)
    rows = list(joined_rows(TEXTS, 8, 512))
    with torch.no_grad():
        states = hidden_states_at(model, -1, **model_inputs(model, rows))
        for line, row in enumerate(rows):
            for text, path in zip(row.texts, row.paths, strict=True):
                alone = hidden_states_at(model, -1, input_ids=torch.tensor([TEXTS[text]]))
                torch.testing.assert_close(states[line, path], alone[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["bloom", "gemma2", "gpt_neo"])
def test_models_that_cannot_join_are_found_out(name: str) -> None:
    """BLOOM's positions come from a (B, T) mask; the windows of the others hold four tokens."""
    model = tiny_model(name)
    assert longest_row(model) == 0
    requests = [Request(text[:2], text[2:]) for text in TEXTS]
    found = continuation_log_probabilities(model, requests, batch_size=8)
    alone = [continuation_log_probabilities(model, [each], batch_size=1)[0] for each in requests]
    assert found == pytest.approx(alone, rel=1e-4)


@pytest.mark.parametrize("name", ["gemma2", "gpt_neo"])
def test_a_row_is_no_longer_than_a_window(name: str) -> None:
    model = tiny_model(name, **WIDE_WINDOW[name])
    assert longest_row(model) == 20
    requests = [Request([1, *SHARED, *range(50, 60)], [last, 30]) for last in range(40, 46)]
    found = continuation_log_probabilities(model, requests, batch_size=8)
    alone = [continuation_log_probabilities(model, [each], batch_size=1)[0] for each in requests]
    assert found == pytest.approx(alone, rel=1e-5)


def test_what_is_shared_runs_through_the_model_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = 0
    original = hidden_states_at

    def counted(model: object, layer: int, **inputs: torch.Tensor) -> torch.Tensor:
        nonlocal tokens
        tokens += inputs["input_ids"].numel()
        return original(model, layer, **inputs)  # type: ignore[arg-type]

    monkeypatch.setattr(token_scores, "hidden_states_at", counted)
    model = tiny_model("llama")
    requests = [Request([1, *SHARED], [20, last, 30]) for last in range(40, 46)]
    found = continuation_log_probabilities(model, requests, batch_size=8)
    assert tokens == 1 + LEAST_SHARED + 1 + 6  # the last token of a text is not read
    alone = [continuation_log_probabilities(model, [each], batch_size=1)[0] for each in requests]
    assert found == pytest.approx(alone, rel=1e-5)


def test_a_batch_has_at_most_batch_size_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    original = model_inputs

    def counted(model: object, rows: list[Row]) -> dict[str, torch.Tensor]:
        seen.append(sum(len(row.texts) for row in rows))
        return original(model, rows)

    monkeypatch.setattr(token_scores, "model_inputs", counted)
    requests = [Request([1, *SHARED], [20, last, 30]) for last in range(40, 46)]
    requests += [Request([2], [last, 30]) for last in range(40, 46)]
    continuation_log_probabilities(tiny_model("llama"), requests, batch_size=4)
    assert seen and sum(seen) == 12 and max(seen) == 4
