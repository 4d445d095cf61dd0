"""log p of each token that counts, at the price of those tokens: no logits elsewhere.

Texts that follow one another often begin alike, as the choices of one item do; what two of them
share is scored once. Logits are formed a block of positions at a time.

Shapes: B texts, T tokens, C hidden size, V vocabulary, P scored positions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from crossalign.models.encode import input_device, pad_right
from crossalign.models.hidden_states import hidden_states_at
from crossalign.models.next_token_loss import block_logits, product_dtype
from crossalign.models.output_head import OutputHead, check_output_head, output_head
from crossalign.precision import without_autocast

_LOGITS_AT_A_TIME = 2**24  # float32: 64 MiB


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
    that counts, once for those that neighboring requests share.
    """
    unique: dict[tuple[tuple[int, ...], ...], int] = {}  # equal texts have the very same score
    places = [unique.setdefault(tuple(map(tuple, each)), len(unique)) for each in requests]
    requests = [Request(*map(list, each)) for each in unique]
    work = [each for each in _new_work(requests) if each.targets]
    work.sort(key=lambda each: -len(each.tokens))
    scores: list[dict[int, float]] = [{} for _ in requests]
    head = _plain_head(model, work[0].tokens) if work else None
    with torch.no_grad():
        for batch in _batches(work, batch_size, progress):
            values = iter(_batch_scores(model, head, batch))
            for each in batch:
                scores[each.text] = {place: next(values) for place in each.targets}
    sums = []
    for index, request in enumerate(requests):
        first, last = len(request.context), len(request.tokens)
        if index:
            shared = _shared(requests[index - 1], request)
            earlier = scores[index - 1]
            scores[index] |= {place: earlier[place] for place in earlier if place < shared}
        sums.append(math.fsum(scores[index][place] for place in range(first, last)))
    return [sums[place] for place in places]


def _new_work(requests: Sequence[Request]) -> Iterator[_Work]:
    known: set[int] = set()  # places that the text before has scores of
    for index, request in enumerate(requests):
        shared = _shared(requests[index - 1], request) if index else 0
        known = {place for place in known if place < shared}
        tokens = request.tokens
        targets = [p for p in range(len(request.context), len(tokens)) if p not in known]
        known.update(targets)
        yield _Work(index, tokens, targets)


def _shared(one: Request, other: Request) -> int:
    """Tokens that both begin with."""
    count = 0
    for a, b in zip(one.tokens, other.tokens, strict=False):
        if a != b:
            break
        count += 1
    return count


def _batches(work: Sequence[_Work], batch_size: int, progress: bool) -> Iterator[Sequence[_Work]]:
    starts: Any = range(0, len(work), batch_size)
    if progress:
        from tqdm.auto import tqdm

        starts = tqdm(starts, desc="score", unit="batch", disable=None)
    for start in starts:
        yield work[start : start + batch_size]


def _plain_head(model: Any, tokens: list[int]) -> OutputHead | None:
    """None where the model makes its logits in another way than its output embedding tells."""
    try:
        check_output_head(model, torch.tensor([tokens[:2]], device=input_device(model)))
    except ValueError:
        return None
    return output_head(model)


def _batch_scores(model: Any, head: OutputHead | None, batch: Sequence[_Work]) -> list[float]:
    """log p of every target of every text, text by text."""
    # The last token is predicted, not read: a text may be one longer than the model's positions.
    inputs = pad_right([each.tokens[:-1] for each in batch], input_device(model))
    row = [k for k, each in enumerate(batch) for _ in each.targets]
    place = [target - 1 for each in batch for target in each.targets]
    targets = torch.tensor([each.tokens[t] for each in batch for t in each.targets])
    if head is None:
        states = model(**inputs, use_cache=False).logits
    else:
        states = hidden_states_at(model, -1, **inputs)
    chosen = states[torch.tensor(row).to(states.device), torch.tensor(place).to(states.device)]
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
    logits = states.float()
    if head is not None:
        states = states.to(product_dtype(states))
        with without_autocast(states.device.type):
            logits = block_logits(states, *head[:2], 0, head.weight.shape[0], *head[2:])
    return logits.gather(1, targets[:, None])[:, 0] - logits.logsumexp(dim=1)
