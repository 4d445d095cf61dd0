"""log p of each token that counts, at the price of those tokens: no logits elsewhere.

Texts that follow one another often begin alike, as the choices of one item do; what two of them
share is scored once, and runs through the model once where the model takes joined texts. Logits are
formed a block of positions at a time.

Shapes: B texts, T tokens, C hidden size, V vocabulary, P scored positions.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from crossalign.evaluation.joined_texts import (
    LEAST_SHARED,
    Row,
    joined_rows,
    longest_row,
    model_inputs,
    num_shared,
)
from crossalign.models.encode import input_device
from crossalign.models.hidden_states import hidden_states_at
from crossalign.models.next_token_loss import block_logits, product_dtype
from crossalign.models.output_head import OutputHead, check_output_head, output_head
from crossalign.precision import without_autocast

_LOGITS_AT_A_TIME = 2**25  # float32: 128 MiB


class Request(NamedTuple):
    """log p(continuation | context) is asked; both are token ids, the context at least one."""

    context: list[int]
    continuation: list[int]

    @property
    def tokens(self) -> list[int]:
        return self.context + self.continuation


class _Work(NamedTuple):
    """The positions of one text that no text before it has scored."""

    text: int  # its number
    tokens: list[int]
    targets: list[int]  # places of the tokens whose probability is needed


def continuation_log_probabilities(
    model: Any, requests: Sequence[Request], *, batch_size: int, progress: bool = False
) -> list[float]:
    """In the order of the requests; the model runs as it is, without gradients.

    Cost: one forward over the texts, the longest first, and the output embedding at each position
    that counts; what neighboring requests begin with counts once.
    """
    unique: dict[tuple[tuple[int, ...], ...], int] = {}  # equal texts have the very same score
    places = [unique.setdefault(tuple(map(tuple, each)), len(unique)) for each in requests]
    requests = [Request(*map(list, each)) for each in unique]
    work = [each for each in _new_work(requests) if each.targets]
    scores: list[dict[int, float]] = [{} for _ in requests]
    head = _plain_head(model, work[0].tokens) if work else None
    with torch.no_grad():
        for batch in _batches(_rows(model, work, batch_size), batch_size, progress):
            values = iter(_batch_scores(model, head, batch, work))
            for each in (work[text] for row in batch for text in row.texts):
                scores[each.text] = {place: next(values) for place in each.targets}
    sums = []
    for index, request in enumerate(requests):
        first, last = len(request.context), len(request.tokens)
        if index:
            shared = num_shared(requests[index - 1].tokens, request.tokens)
            earlier = scores[index - 1]
            scores[index] |= {place: earlier[place] for place in earlier if place < shared}
        sums.append(math.fsum(scores[index][place] for place in range(first, last)))
    return [sums[place] for place in places]


def _new_work(requests: Sequence[Request]) -> Iterator[_Work]:
    known: set[int] = set()  # places that the text before has scores of
    for index, request in enumerate(requests):
        shared = num_shared(requests[index - 1].tokens, request.tokens) if index else 0
        known = {place for place in known if place < shared}
        tokens = request.tokens
        targets = [p for p in range(len(request.context), len(tokens)) if p not in known]
        known.update(targets)
        yield _Work(index, tokens, targets)


def _rows(model: Any, work: Sequence[_Work], batch_size: int) -> list[Row]:
    """The longest first."""
    # The last token is predicted, not read: a text may be one longer than the model's positions.
    read = [each.tokens[:-1] for each in work]
    neighbors = itertools.pairwise(read)
    is_shared = any(num_shared(one, other) >= LEAST_SHARED for one, other in neighbors)
    rows = joined_rows(read, batch_size, longest_row(model) if is_shared else 0)
    return sorted(rows, key=lambda row: -len(row.tokens))


def _batches(rows: Sequence[Row], batch_size: int, progress: bool) -> Iterable[list[Row]]:
    """Of at most batch_size texts, or one row."""
    batches: list[list[Row]] = [[]]
    for row in rows:
        if sum(len(each.texts) for each in [*batches[-1], row]) > batch_size and batches[-1]:
            batches.append([])
        batches[-1].append(row)
    found = batches if batches[-1] else []
    if not progress:
        return found
    from tqdm.auto import tqdm

    shown: Iterable[list[Row]] = tqdm(found, desc="score", unit="batch", disable=None)
    return shown


def _plain_head(model: Any, tokens: list[int]) -> OutputHead | None:
    """None where the model makes its logits in another way than its output embedding tells."""
    try:
        check_output_head(model, torch.tensor([tokens[:2]], device=input_device(model)))
    except ValueError:
        return None
    return output_head(model)


def _batch_scores(
    model: Any, head: OutputHead | None, batch: Sequence[Row], work: Sequence[_Work]
) -> list[float]:
    """log p of every target of every text, text by text."""
    inputs = model_inputs(model, batch)
    wanted = [
        (line, path[target - 1], work[text].tokens[target])
        for line, row in enumerate(batch)
        for text, path in zip(row.texts, row.paths, strict=True)
        for target in work[text].targets
    ]
    line, place, targets = torch.tensor(wanted).T
    if head is None:
        states = model(**inputs, use_cache=False).logits
    else:
        states = hidden_states_at(model, -1, **inputs)
    chosen = states[line.to(states.device), place.to(states.device)]
    targets = targets.to(chosen.device)
    num_logits = chosen.shape[1] if head is None else head.weight.shape[0]
    rows = max(1, _LOGITS_AT_A_TIME // num_logits)
    found = [
        _target_scores(part, head, target)
        for part, target in zip(torch.split(chosen, rows), torch.split(targets, rows), strict=True)
    ]
    scores: list[float] = torch.cat(found).tolist()
    return scores


def _target_scores(states: Tensor, head: OutputHead | None, targets: Tensor) -> Tensor:
    """(P,) float32; states: (P, C) of the last layer, or (P, V) logits without a head."""
    if head is None:
        logits = states.to(torch.float32, copy=True)
    else:
        states = states.to(product_dtype(states))
        with without_autocast(states.device.type):
            logits = block_logits(states, *head[:2], 0, head.weight.shape[0], *head[2:])
    # In place: a pass over logits of a large vocabulary costs as much as a product with few rows.
    logits = logits.sub_(logits.amax(dim=1, keepdim=True))
    chosen = logits.gather(1, targets[:, None])[:, 0]
    return chosen - logits.exp_().sum(dim=1).log()
