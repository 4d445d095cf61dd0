"""What align_real_model measures of a model: retrieval by layer and bits per byte by language, from
one pass over the lines; choice tasks; the language of what it writes.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from crossalign.evaluation.in_context import InContextSettings, evaluate_in_context
from crossalign.evaluation.vectors.projection import project_to_plane
from crossalign.evaluation.vectors.retrieval import retrieval_scores
from crossalign.models.encode import pad_right, tokenize
from crossalign.models.hidden_states import eval_mode
from crossalign.models.layer_states import hidden_states_of
from crossalign.models.next_token_loss import language_model_loss
from crossalign.models.output_head import output_head
from crossalign.pooling.centering import center_vectors
from crossalign.pooling.content_tokens import content_mask
from crossalign.pooling.functions import masked_mean_pool

Row = dict[str, Any]
BATCH = 16
POOLINGS = ("all", "content")


class Vectors(NamedTuple):
    """pooled: (layer, tokens that count) -> language -> (lines, C); bits: language -> bits of the
    scored lines per byte of them."""

    pooled: dict[tuple[int, str], dict[str, Tensor]]
    bits: dict[str, float]


def measure(
    model: Any,
    tokenizer: Any,
    lines: Mapping[str, Sequence[str]],
    layers: Sequence[int],
    num_scored: int,
) -> Vectors:
    """num_scored: first lines of each language that are scored, 0 for none; then the last layer
    must be among the layers."""
    pooled: dict[tuple[int, str], dict[str, Tensor]] = {
        (layer, tokens): {} for layer in layers for tokens in POOLINGS
    }
    bits = {}
    special = torch.tensor(tokenizer.all_special_ids)
    with eval_mode(model), torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for language, texts in lines.items():
            ids = tokenize(model, tokenizer, list(texts))
            rows = {key: torch.zeros(len(texts), model.config.hidden_size) for key in pooled}
            nats = 0.0
            for chosen in _batches(ids, num_scored):
                inputs = pad_right([ids[row] for row in chosen], torch.device("cpu"))
                states = hidden_states_of(model, layers, **inputs)
                mask = inputs["attention_mask"]
                masks = {"all": mask, "content": content_mask(inputs["input_ids"], mask, special)}
                for layer, hidden in zip(layers, states, strict=True):
                    for tokens, each in masks.items():
                        rows[layer, tokens][chosen] = masked_mean_pool(hidden.float(), each)
                if chosen[0] < num_scored:
                    nats += _nats(model, states[-1], inputs)
            for key, vectors in rows.items():
                pooled[key][language] = vectors
            num_bytes = sum(len(text.encode()) for text in texts[:num_scored])
            bits[language] = nats / math.log(2) / num_bytes if num_bytes else math.nan
    return Vectors(pooled, bits)


def _batches(ids: Sequence[Sequence[int]], num_scored: int) -> list[list[int]]:
    """Rows of like length; those that are scored are among themselves."""
    batches = []
    for part in (range(num_scored), range(num_scored, len(ids))):
        rows = sorted(part, key=lambda row: -len(ids[row]))
        batches += [rows[start : start + BATCH] for start in range(0, len(rows), BATCH)]
    return batches


def _nats(model: Any, hidden: Tensor, inputs: Mapping[str, Tensor]) -> float:
    """Of all tokens but the first, which the tokenizer puts there."""
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    head = output_head(model)
    loss = language_model_loss(
        hidden,
        head.weight,
        labels,
        bias=head.bias,
        scale=head.scale,
        softcap=head.softcap,
    )
    return float(loss) * int((labels[:, 1:] != -100).sum())


def retrieval(vectors: Vectors) -> list[Row]:
    """Top-1 accuracy, mean of both directions, of each layer, choice of tokens and pair: plain, by
    the mean of all languages, and by the mean of each."""
    rows = []
    for (layer, tokens), by_language in vectors.pooled.items():
        mean = torch.cat(list(by_language.values())).mean(dim=0)
        for one, other in itertools.combinations(by_language, 2):
            pair = by_language[one], by_language[other]
            sides = center_vectors(*pair, center="side")
            rows.append(
                {
                    "layer": layer,
                    "tokens": tokens,
                    "pair": f"{one}-{other}",
                    "none": retrieval_scores(*pair).accuracy,
                    "batch": retrieval_scores(pair[0] - mean, pair[1] - mean).accuracy,
                    "side": retrieval_scores(sides[0], sides[1]).accuracy,
                }
            )
    return rows


def mean_accuracy(rows: Sequence[Row], layer: int, tokens: str, center: str) -> float:
    """Over the pairs of languages."""
    values = [r[center] for r in rows if r["layer"] == layer and r["tokens"] == tokens]
    return sum(values) / len(values)


def plane(vectors: Vectors, layer: int) -> list[Row]:
    """Where each sentence is in the plane that keeps most of the variance of all languages'
    directions, as the sentences are and with each language centered."""
    rows = []
    by_language = vectors.pooled[layer, "content"]
    for center in ("none", "side"):
        moved = [v - v.mean(dim=0) if center == "side" else v for v in by_language.values()]
        found = project_to_plane(torch.cat([normalize(each, dim=1) for each in moved]))
        parts = torch.split(found.points, [len(each) for each in moved])
        for language, points in zip(by_language, parts, strict=True):
            place = {"layer": layer, "plane": center, "language": language}
            rows.append({**place, "points": points.tolist(), "shares": found.variance_shares})
    return rows


def task_rows(
    model: Any, tokenizer: Any, data: Path, task: str, languages: list[str], limit: int
) -> list[Row]:
    """Records of one task without demonstrations, and its items, so that two models can be
    paired item by item."""
    settings = InContextSettings(tasks=(task,), languages=languages, limit=limit, too_long="skip")
    found = evaluate_in_context(model, tokenizer, data, settings)
    names = ("task", "language", "accuracy", "correct", "items", "interval", "chance")
    kept = ("task", "language", "id", "correct")
    return [
        *({name: record[name] for name in names} for record in found.records),
        *({name: item[name] for name in kept} for item in found.items),
    ]


class LanguageGuesser:
    """Naive Bayes over character trigrams: enough to tell languages apart that were in the text."""

    def __init__(self, texts: Mapping[str, Sequence[str]]) -> None:
        self.counts = {
            language: Counter(gram for text in lines for gram in _trigrams(text))
            for language, lines in texts.items()
        }
        self.num_grams = len(set().union(*self.counts.values()))

    def __call__(self, text: str) -> str:
        def score(language: str) -> float:
            counts = self.counts[language]
            total = counts.total() + self.num_grams
            return sum(math.log((counts[gram] + 1) / total) for gram in _trigrams(text))

        return max(self.counts, key=score)


def _trigrams(text: str) -> list[str]:
    padded = f"  {text.lower()} "
    return [padded[start : start + 3] for start in range(len(padded) - 2)]


def generation(
    model: Any, tokenizer: Any, prompts: Mapping[str, Sequence[str]], guess: LanguageGuesser
) -> list[Row]:
    """What the model writes after a question, greedily, and in which language it seems to be."""
    rows = []
    with eval_mode(model), torch.no_grad():
        for language, questions in prompts.items():
            for question in questions:
                inputs = tokenizer(f"{question}\n", return_tensors="pt")
                # Not the quantized model's generation settings: the most probable token, 32 times.
                written = model.generate(
                    **inputs, max_new_tokens=32, do_sample=False, pad_token_id=0
                )
                answer = tokenizer.decode(
                    written[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True
                )
                found = guess(answer) if answer.strip() else ""
                rows.append({"asked": language, "written": found, "answer": answer})
    return rows
