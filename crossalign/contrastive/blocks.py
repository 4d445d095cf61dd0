"""The blocks of logits of each direction: what one pass over them is given, and what it yields.

    A = query -> key    B = key -> query    C = query -> query    D = key -> key

A and B share one pass where the same logits serve both. C and D are one more pass each, whose
matrix is symmetric but for further negatives, so that half of it serves both halves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from crossalign.contrastive.choices import Direction
from crossalign.contrastive.chunked.norms import inverse_norms
from crossalign.contrastive.options import LossArguments
from crossalign.contrastive.problem import ContrastiveProblem, ContrastiveSums, dot_rounding
from crossalign.contrastive.terms import BlockSums, column_block, row_block, scale_tensor
from crossalign.precision import accumulator, without_autocast

# Within it exp(z), and its sum over 2^20 candidates, is a normal float32 number: no maximum need be
# subtracted first.
LARGEST_BOUND = 40.0


Side = Literal["query", "key"]


class Pass(NamedTuple):
    """One pass over logits: one side's rows against the other's and, if asked, the negatives."""

    query: Side
    key: Side
    with_negatives: bool
    problem: ContrastiveProblem  # of this process's own rows

    def tensors(self, arguments: LossArguments) -> tuple[Tensor, Tensor, Tensor | None]:
        """(query, key, negatives) of the pass."""
        sides = {"query": arguments.query, "key": arguments.key}
        negatives = arguments.negatives if self.with_negatives else None
        return sides[self.query], sides[self.key], negatives


def all_passes(arguments: LossArguments, first: Pass) -> dict[Direction, Pass]:
    """The passes over the logits by the direction that each is for; first: of query_key_pass."""
    passes: dict[Direction, Pass] = {"query_to_key": first}
    for direction in arguments.options.in_both_directions().directions:
        is_served = direction == "key_to_query" and first.problem.symmetric
        if direction != "query_to_key" and not is_served:
            passes[direction] = _further_pass(arguments, first, direction)
    return passes


def blocks_of(
    passes: Mapping[Direction, Pass], sums: Sequence[ContrastiveSums]
) -> dict[Direction, BlockSums]:
    """What each direction gives to a term. sums: of the passes, in their order."""
    by_direction = dict(zip(passes, sums, strict=True))
    blocks = {direction: row_block(of_pass) for direction, of_pass in by_direction.items()}
    if passes["query_to_key"].problem.symmetric:
        blocks["key_to_query"] = column_block(by_direction["query_to_key"])
    return blocks


def query_key_pass(arguments: LossArguments) -> Pass:
    """A, and B with it where the same logits serve both: where no hardness is added to keys'."""
    options = arguments.options.in_both_directions()
    ids, key_ids, negative_ids = arguments.ids, arguments.key_ids, arguments.negative_ids
    scale = scale_tensor(arguments.temperature, arguments.query)
    query_ids = None if ids is None else ids.long()
    candidate_ids = query_ids if key_ids is None else key_ids.long()
    if candidate_ids is not None and negative_ids is not None:
        candidate_ids = torch.cat([candidate_ids, negative_ids.long()])
    owner, weight = arguments.negative_owner, float(options.hard_negative_weight)
    is_both = "key_to_query" in options.directions and not needs_own_pass(arguments)
    limit, guide = _margin_limit(arguments, scale), _guide(arguments)
    num_keys = arguments.key.shape[0]
    problem = ContrastiveProblem(
        scale=scale,
        query_ids=query_ids,
        candidate_ids=candidate_ids,
        negative_owner=None if owner is None else owner.long(),
        row_limit=limit,
        column_limit=limit if is_both else None,
        query_guide=guide.query,
        candidate_guide=guide.candidates,
        row_guide_limit=guide.limit,
        column_guide_limit=guide.limit if is_both else None,
        num_keys=num_keys,
        # With key_ids no candidate is a row's own: the label lies past all keys.
        label_offset=0 if key_ids is None else num_keys + arguments.query.shape[0],
        hard_negative_weight=weight,
        share_negatives=bool(options.share_negatives),
        exclude_owned=False,
        exclude_label=not arguments.has_own_key,
        multi_positive=options.same_id == "positive" and ids is not None,
        hardness=float(options.hardness),
        hardness_on=options.hardness_on,
        symmetric=is_both,
        same_side=False,
        with_logit_sums=bool(options.label_smoothing) or options.is_debiased,
        normalize=bool(options.normalize),
        bound=_logit_bound(arguments, abs(weight) + abs(options.hardness)),
    )
    return Pass("query", "key", arguments.negatives is not None, problem)


def needs_own_pass(arguments: LossArguments) -> bool:
    """Whether B's logits differ from A's: hardness is added to those of keys in A."""
    return arguments.options.hardness != 0 and arguments.options.hardness_on != "owned"


def _further_pass(arguments: LossArguments, first: Pass, direction: Direction) -> Pass:
    problem = first.problem
    of_keys = problem.candidate_guide
    of_keys = None if of_keys is None else of_keys[: problem.num_keys]
    common = problem._replace(
        candidate_ids=problem.query_ids,
        negative_owner=None,
        column_limit=None,
        column_guide_limit=None,
        hard_negative_weight=0.0,
        share_negatives=True,
        hardness=0.0,
        symmetric=False,
        bound=_logit_bound(arguments, 0.0),
    )
    if direction == "key_to_query":
        common = common._replace(query_guide=of_keys, candidate_guide=problem.query_guide)
        return Pass("key", "query", False, common)
    is_alone = arguments.options.group is None
    common = common._replace(
        exclude_label=True,
        multi_positive=False,
        same_side=is_alone,
        column_limit=problem.row_limit if is_alone else None,
        column_guide_limit=problem.row_guide_limit if is_alone else None,
    )
    if direction == "query_to_query":
        common = common._replace(candidate_guide=problem.query_guide)
        return Pass("query", "query", False, common)
    common = common._replace(query_guide=of_keys)
    if not (first.with_negatives and arguments.options.share_negatives):
        return Pass("key", "key", False, common._replace(candidate_guide=of_keys))
    common = common._replace(
        candidate_ids=problem.candidate_ids,
        candidate_guide=problem.candidate_guide,
        negative_owner=problem.negative_owner,
        exclude_owned=problem.negative_owner is not None,
    )
    return Pass("key", "key", True, common)


def _logit_bound(arguments: LossArguments, added: float) -> float | None:
    """What no logit exceeds in size, where that is known and small enough, else None."""
    if not arguments.options.normalize or isinstance(arguments.temperature, Tensor):
        return None
    bound = 1.0 / float(arguments.temperature) + added
    return bound if bound < LARGEST_BOUND else None


@torch.no_grad()
def _margin_limit(arguments: LossArguments, scale: Tensor) -> Tensor | None:
    """(N,) the scaled similarity above which a candidate counts as a false negative."""
    margin = arguments.options.false_negative_margin
    if margin is None:
        return None
    query, key = (x.to(scale.dtype) for x in (arguments.query, arguments.key))
    norms = [inverse_norms(x) for x in (query, key)]
    similarity = _products(query, key)
    slack: Tensor | float = _rounding(query) / (norms[0] * norms[1])
    if arguments.options.normalize:
        similarity = similarity * norms[0] * norms[1]
        slack = _rounding(query)
    limit: Tensor = (similarity + margin + slack) * scale
    return limit


class _Guide(NamedTuple):
    query: Tensor | None = None  # (N, G) unit rows
    candidates: Tensor | None = None  # (M, G)
    limit: Tensor | None = None  # (N,) the guide similarity above which a candidate is left out


@torch.no_grad()
def _guide(arguments: LossArguments) -> _Guide:
    if arguments.guide_query is None or arguments.guide_key is None:
        return _Guide()
    given = [arguments.guide_query, arguments.guide_key, arguments.guide_negatives]
    units = []
    for guide in given:
        if guide is not None:
            guide = guide.to(accumulator(guide.dtype))
            units.append(guide * inverse_norms(guide)[:, None])
    margin: Tensor | float = arguments.options.guide_margin
    similarity = _products(units[0], units[1])
    if arguments.options.guide_margin_type == "relative":
        margin = margin * similarity.abs()
    limit = similarity + margin + _rounding(units[0])
    return _Guide(units[0], torch.cat(units[1:]), limit)


def _products(x: Tensor, y: Tensor) -> Tensor:
    """(N,) of each row of x and that of y, which autocast would round to 16 bits."""
    with without_autocast(x.device.type):
        products: Tensor = torch.linalg.vecdot(x, y)
    return products


def _rounding(x: Tensor) -> float:
    """What a dot product of unit vectors can be off by: a copy of the own key is no closer."""
    eps = torch.finfo(x.dtype).eps
    return dot_rounding(x.shape[1], eps) + 2 * eps
