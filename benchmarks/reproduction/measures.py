"""What reproduce_afp measures: retrieval and geometry by layer, how often a translation is the
likeliest choice, perplexity by language."""

from __future__ import annotations

import itertools
import random
import statistics
from collections.abc import Sequence
from typing import Any

from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from benchmarks.reproduction.data import CAPTION_LANGUAGES, PIVOT, Corpus
from crossalign.demo.measurement import perplexity
from crossalign.evaluation.choice_scoring import Candidate, ChoiceScorer
from crossalign.evaluation.vectors.geometry import (
    alignment,
    center_distance,
    language_identification,
    spread,
    uniformity,
)
from crossalign.evaluation.vectors.layer_embeddings import encode_layers
from crossalign.evaluation.vectors.retrieval import retrieval_scores

CHOICES = 4
BATCH = 64


def measure(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    corpus: Corpus,
    layers: Sequence[int],
    questions: dict[int, int],
) -> dict[str, Any]:
    """questions: number of demonstrations -> questions per direction."""
    scorer = ChoiceScorer(model, tokenizer, batch_size=BATCH)
    return {
        "layers": layer_measures(model, tokenizer, corpus, layers),
        "choice": {
            str(shots): choice_accuracy(scorer, tokenizer, corpus, shots, number)
            for shots, number in questions.items()
            if number
        },
        "perplexity": {
            language: perplexity(model, tokenizer, texts, batch_size=BATCH)
            for language, texts in corpus.held_out.items()
        },
    }


def layer_measures(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    corpus: Corpus,
    layers: Sequence[int],
) -> dict[str, Any]:
    """layer -> retrieval of each pair of languages, both ways, and geometry of the captions."""

    def encoded(sentences: list[str]) -> dict[int, Tensor]:
        return encode_layers(model, tokenizer, sentences, layers, batch_size=BATCH)

    captions = {PIVOT: encoded(corpus.tests[CAPTION_LANGUAGES[1]][0])}
    captions |= {code: encoded(corpus.tests[code][1]) for code in CAPTION_LANGUAGES[1:]}
    others = {
        code: tuple(encoded(side) for side in corpus.tests[code])
        for code in corpus.tests
        if code not in CAPTION_LANGUAGES
    }
    found = {}
    for layer in layers:
        vectors = {code: rows[layer] for code, rows in captions.items()}
        sides = {
            f"{one}-{two}": (vectors[one], vectors[two])
            for one, two in itertools.combinations(vectors, 2)
        }
        sides |= {
            f"{PIVOT}-{code}": (one[layer], two[layer]) for code, (one, two) in others.items()
        }
        found[str(layer)] = {"retrieval": retrieval(sides), "geometry": geometry(vectors)}
    return found


def retrieval(sides: dict[str, tuple[Tensor, Tensor]]) -> dict[str, list[float]]:
    """Top-1 accuracy, forward and backward."""
    scores = {name: retrieval_scores(one, two) for name, (one, two) in sides.items()}
    return {
        name: [score.forward_accuracy, score.backward_accuracy] for name, score in scores.items()
    }


def geometry(vectors: dict[str, Tensor]) -> dict[str, float]:
    """Means over the pairs of languages, and over the languages."""
    pairs = list(itertools.combinations(vectors.values(), 2))
    spreads = [spread(rows) for rows in vectors.values()]
    identified = language_identification(vectors)
    return {
        "alignment": statistics.fmean(alignment(one, two) for one, two in pairs),
        "uniformity": statistics.fmean(uniformity(rows) for rows in vectors.values()),
        "center_distance": statistics.fmean(
            center_distance(one, two) for one, two in itertools.combinations(spreads, 2)
        ),
        "language_identification": statistics.fmean(identified.values()),
    }


def choice_accuracy(
    scorer: ChoiceScorer,
    tokenizer: PreTrainedTokenizerFast,
    corpus: Corpus,
    shots: int,
    number: int,
) -> dict[str, dict[str, float]]:
    """Share of sentences whose translation is the likeliest of four continuations of "sentence = ".

    Wrong ones are translations of other test sentences; chance is 1 / 4. "likelihood" compares
    log p(y | x), which a short or a common y wins whatever x is; "gain" compares
    log p(y | x) - log p(y), what x tells about y.
    """
    candidates: list[Candidate] = []
    directions = []
    for language, (english, foreign) in corpus.tests.items():
        for name, sources, targets in (
            (f"{PIVOT}-{language}", english, foreign),
            (f"{language}-{PIVOT}", foreign, english),
        ):
            directions.append(name)
            candidates += questions_of(tokenizer, name, sources, targets, shots, number)
    alone = [Candidate("", each.continuation.lstrip()) for each in candidates]
    likelihood = scorer.log_probabilities(candidates)
    marginal = scorer.log_probabilities(alone)
    gain = [with_x - without for with_x, without in zip(likelihood, marginal, strict=True)]
    return {
        "likelihood": shares_right(likelihood, directions),
        "gain": shares_right(gain, directions),
    }


def shares_right(scores: list[float], directions: list[str]) -> dict[str, float]:
    """Scores of the questions of each direction in turn, the right choice of each first."""
    hits = [
        scores[start] > max(scores[start + 1 : start + CHOICES])
        for start in range(0, len(scores), CHOICES)
    ]
    number = len(hits) // len(directions)
    return {
        name: statistics.fmean(hits[index * number : (index + 1) * number])
        for index, name in enumerate(directions)
    }


def questions_of(
    tokenizer: PreTrainedTokenizerFast,
    direction: str,
    sources: list[str],
    targets: list[str],
    shots: int,
    number: int,
) -> list[Candidate]:
    """CHOICES candidates per question, the right one first; the same for every model."""
    chance = random.Random(f"{direction} {shots}")
    border = f"{tokenizer.eos_token}{tokenizer.bos_token}"
    candidates = []
    for row in chance.sample(range(len(sources)), number):
        others = [other for other in range(len(sources)) if targets[other] != targets[row]]
        drawn = chance.sample(others, CHOICES - 1 + shots)
        demos = [f"{sources[demo]} = {targets[demo]}" for demo in drawn[CHOICES - 1 :]]
        context = border.join([*demos, f"{sources[row]} ="])
        choices = [row, *drawn[: CHOICES - 1]]
        candidates += [Candidate(context, f" {targets[choice]}") for choice in choices]
    return candidates
