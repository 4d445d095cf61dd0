"""What gets in the way of comparing sentences, and the option that removes it.

In many models the state of the first token is far larger than all others, or all sentence vectors
point nearly the same way; accuracies and distances then say less than they could.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from crossalign.analysis.measurement import AnalysisOptions, LayerMeasurement
from crossalign.models.encode import token_batches
from crossalign.models.hidden_states import eval_mode
from crossalign.models.layer_states import visit_layers

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DOMINANT_SHARE = 0.5
CROWDED_COSINE = 0.95
LINES_LOOKED_AT = 16  # of each language, to look at first tokens


def advice(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sentences: Mapping[str, Sequence[str]],
    measured: Sequence[LayerMeasurement],
    options: AnalysisOptions,
) -> str:
    """One line that names the options to try; "" where there is nothing to say."""
    found = []
    if options.pooling == "mean" and options.pool_tokens == "all" and _starts_special(tokenizer):
        lines = [line for each in sentences.values() for line in each[:LINES_LOOKED_AT]]
        shares = first_token_shares(model, tokenizer, lines, [each.layer for each in measured])
        dominated = [layer for layer, share in shares.items() if share > DOMINANT_SHARE]
        if dominated:
            found.append(
                f"the first token, put there by the tokenizer, is up to {max(shares.values()):.0%} "
                f"of the mean ({_named(dominated)}); --pool-tokens content leaves it out"
            )
    cosines = {each.layer: each.summary()["mean_cosine"] for each in measured}
    crowded = [layer for layer, cosine in cosines.items() if cosine > CROWDED_COSINE]
    if crowded and options.center == "none":
        found.append(
            f"any two sentences have a cosine of up to {max(cosines.values()):.3f} "
            f"({_named(crowded)}); --center batch takes out what they share"
        )
    return "; ".join(found)


def first_token_shares(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    lines: Sequence[str],
    layers: Sequence[int],
) -> dict[int, float]:
    """Layer, from 0 to L -> |h_1| / sum_t |h_t|, the mean over the lines that have a token."""
    sums = dict.fromkeys(layers, 0.0)
    count = 0

    def add(layer: int, hidden: Tensor) -> None:
        norms = hidden.double().norm(dim=2) * mask.to(hidden.device)
        totals = norms.sum(dim=1)
        sums[layer] += (norms[:, 0] / totals)[totals > 0].sum().item()

    with eval_mode(model), torch.no_grad():
        for _, inputs in token_batches(model, tokenizer, lines, LINES_LOOKED_AT, None):
            mask = inputs["attention_mask"]
            count += int(mask.any(dim=1).sum())
            visit_layers(model, sorted(set(layers)), add, **inputs)
    return {layer: total / max(count, 1) for layer, total in sums.items()}


def _starts_special(tokenizer: PreTrainedTokenizerBase) -> bool:
    ids = tokenizer("a")["input_ids"]
    return bool(ids) and ids[0] in tokenizer.all_special_ids


def _named(layers: Sequence[int]) -> str:
    if len(layers) > 2 and list(layers) == list(range(layers[0], layers[-1] + 1)):
        return f"layers {layers[0]} to {layers[-1]}"
    return f"layer{'s' if len(layers) > 1 else ''} {', '.join(map(str, layers))}"
