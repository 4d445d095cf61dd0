"""Batches with the further options of the loss: alone, in pairs, and in random combinations."""

from __future__ import annotations

import itertools
import random
from typing import Any

import torch
from torch import Tensor

from tests.support.contrastive.loss_outcomes import Inputs
from tests.support.contrastive_cases import assert_outcome, fused
from tests.support.pooling_cases import Run

Options = dict[str, Any]

# Each value of an option, and how it is told apart in a test's name. Names that are no argument of
# the loss stand for tensors that make_options forms.
CHOICES: dict[str, list[Any]] = {
    "symmetric": [True],
    "normalize": [False],
    "temperature": [0.2, 0.02, "learned"],
    "ids": ["mask", "positive"],
    "negatives": ["few", "owned", "per_query"],
    "hard_negative_weight": [0.7],
    "share_negatives": [False],
    "weights": [True],
    "reduction": ["sum", "none"],
    "directions": [
        ("query_to_key", "key_to_query"),
        ("query_to_query", "query_to_key"),
        ("query_to_key", "key_to_key"),
        ("query_to_key", "query_to_query", "key_to_key"),
        ("query_to_key", "key_to_query", "query_to_query", "key_to_key"),
    ],
    "partition": ["per_direction"],
    "false_negative_margin": [0.1, -0.15],
    "hardness": [2.5],
    "hardness_on": ["in_batch", "owned"],
    "label_smoothing": [0.15],
    "debias": [0.1, "per_pair"],
    "exclude_self": [True],
    "key_ids": [True],
    "guides": ["absolute", "relative"],
}
ALONE = [(name, value) for name, values in CHOICES.items() for value in values]


def is_allowed(options: Options) -> bool:
    """Whether the loss takes these together; test_option_errors has what it says otherwise."""
    directions = options.get("directions", ())
    is_positive = options.get("ids") == "positive"
    only_ids = options.get("exclude_self") or options.get("key_ids")
    is_owned = options.get("negatives") in ("owned", "per_query")
    needs_owner = options.get("hard_negative_weight") or options.get("share_negatives") is False
    is_hard = options.get("hardness_on") == "owned" and options.get("hardness")
    forbidden = [
        options.get("symmetric") and directions,
        options.get("partition") and {"query_to_query", "key_to_key"} & set(directions),
        is_positive and directions,
        (needs_owner or is_hard) and not is_owned,
        options.get("debias") and (is_positive or options.get("normalize") is False),
        only_ids and not is_positive,
        only_ids and (options.get("symmetric") or "guides" in options),
        only_ids and "false_negative_margin" in options,
        options.get("exclude_self") and options.get("key_ids"),
        options.get("hardness_on") and not options.get("hardness"),
    ]
    return not any(forbidden)


def pairs_of_options() -> list[Options]:
    """Every two options that go together, and what else they need."""
    found = []
    for (name, value), (other, second) in itertools.combinations(ALONE, 2):
        options = completed({name: value, other: second}) if name != other else None
        if options is not None and is_allowed(options):
            found.append(options)
    return found


def completed(options: Options) -> Options:
    """With what the options cannot be without."""
    options = dict(options)
    if options.get("exclude_self") or options.get("key_ids"):
        options.setdefault("ids", "positive")
    if "hardness_on" in options:
        options.setdefault("hardness", 2.5)
    is_owned = options.get("hardness_on") == "owned" or "hard_negative_weight" in options
    if is_owned or "share_negatives" in options:
        options.setdefault("negatives", "owned")
    return options


def random_options(count: int, seed: int) -> list[Options]:
    """Combinations of three to nine options."""
    chance = random.Random(seed)
    found: list[Options] = []
    while len(found) < count:
        names = chance.sample(sorted(CHOICES), chance.randint(3, 9))
        options = completed({name: chance.choice(CHOICES[name]) for name in names})
        if is_allowed(options):
            found.append(options)
    return found


def make_inputs(options: Options, run: Run, num_pairs: int = 21, num_features: int = 6) -> Inputs:
    """Leaves and arguments for the loss; keys near their queries, so that p spreads over (0, 1)."""
    plain, leaves = dict(options), {}

    def rows(count: int) -> Tensor:
        return torch.randn(count, num_features) * (0.3 + 2 * torch.rand(count, 1))

    def ids(*shape: int) -> Tensor:
        return torch.randint(0, 1 + num_pairs // 3, shape) * 2**32 - 1

    leaves["query"] = rows(num_pairs)
    num_keys = num_pairs + 4 if plain.pop("key_ids", False) else num_pairs
    leaves["key"] = rows(num_keys)
    leaves["key"][:num_pairs] += 0.5 * leaves["query"]
    arguments: dict[str, Any] = {}
    same_id, negatives = plain.pop("ids", None), plain.pop("negatives", None)
    shape = {"few": (7,), "owned": (9,), "per_query": (num_pairs, 2)}.get(negatives, ())
    if negatives is not None:
        count = shape[0] if len(shape) == 1 else shape[0] * shape[1]
        leaves["negatives"] = rows(count).reshape(*shape, num_features)
    if negatives == "owned":
        arguments["negative_owner"] = torch.randint(0, num_pairs, shape)
    if same_id is not None:
        arguments |= {"ids": ids(num_pairs), "same_id": same_id}
        if shape:
            arguments["negative_ids"] = ids(*shape)
    if num_keys != num_pairs:
        arguments["key_ids"] = ids(num_keys)
    if plain.pop("weights", False):
        arguments["weights"] = torch.rand(num_pairs) * 3
    if plain.get("debias") == "per_pair":
        arguments["debias"] = torch.rand(num_pairs) * 0.3
        plain.pop("debias")
    if (margin_type := plain.pop("guides", None)) is not None:
        guide = torch.randn(num_pairs, 5)
        arguments |= {"guide_query": guide, "guide_key": guide + 0.5 * torch.randn(num_pairs, 5)}
        if shape:
            arguments["guide_negatives"] = torch.randn(*shape, 5)
        arguments |= {"guide_margin": -0.1, "guide_margin_type": margin_type}
    if plain.get("temperature", 0.3) == "learned":
        plain.pop("temperature")
        leaves["temperature"] = torch.tensor(0.09)
    elif plain.get("normalize") is False:
        plain["temperature"] = 3.0
    elif "temperature" not in plain:
        plain["temperature"] = 0.1
    wide = torch.float64 if run.dtype == torch.float64 else torch.float32
    leaves = {
        name: leaf.to(run.device, wide if name == "temperature" else run.dtype)
        for name, leaf in leaves.items()
    }
    moved = {
        name: value.to(run.device) if isinstance(value, Tensor) else value
        for name, value in (plain | arguments).items()
    }
    return Inputs(leaves, moved)


def flat(inputs: Inputs) -> Inputs:
    """Negatives (N, K, D) written as (N * K, D) with owners, which the reference takes."""
    if "negatives" not in inputs.leaves or inputs.leaves["negatives"].dim() == 2:
        return inputs
    leaves, options = dict(inputs.leaves), dict(inputs.options)
    num_pairs, per_query, _ = leaves["negatives"].shape
    leaves["negatives"] = leaves["negatives"].flatten(0, 1)
    for name in ("negative_ids", "guide_negatives"):
        if name in options:
            options[name] = options[name].flatten(0, 1)
    options["negative_owner"] = torch.arange(num_pairs).repeat_interleave(per_query)
    return Inputs(leaves, options)


def name_of(options: Options) -> str:
    return "-".join(f"{name}={value}" for name, value in options.items())


def assert_equals_reference(
    options: Options, run: Run, num_pairs: int = 21, num_features: int = 6
) -> None:
    """Loss, statistics and every gradient, under an upstream gradient that is not 1."""
    inputs = make_inputs(options, run, num_pairs, num_features)
    size = (num_pairs,) if options.get("reduction") == "none" else ()
    upstream = torch.rand(size, dtype=torch.float64) * 2 + 0.1
    got = fused(inputs, run.backend, upstream)
    negatives = got.grads.get("negatives")
    if negatives is not None and negatives.dim() == 3:
        got = got._replace(grads=got.grads | {"negatives": negatives.flatten(0, 1)})
    assert_outcome(got, flat(inputs), upstream)
