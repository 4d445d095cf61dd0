"""The contrastive loss where all rows are on this process: passes, terms, reduction."""

from __future__ import annotations

import torch
from torch import Tensor

from crossalign.argument_checks import values_may_be_read
from crossalign.contrastive.arguments import takes_triton
from crossalign.contrastive.blocks import Pass, all_passes, blocks_of, query_key_pass
from crossalign.contrastive.combine import combined_terms, has_no_rest, reduce_terms
from crossalign.contrastive.one_pass import one_pass_loss, one_pass_takes
from crossalign.contrastive.ops import contrastive_sums
from crossalign.contrastive.options import LossArguments
from crossalign.contrastive.pair_loss import pair_loss, pair_loss_takes
from crossalign.contrastive.problem import ContrastiveSums
from crossalign.contrastive.row_loss import row_loss
from crossalign.contrastive.small_batch import small_batch_loss
from crossalign.contrastive.terms import (
    ContrastiveStats,
    TermRules,
    contrastive_stats,
    counted_weights,
    term_rules,
    warn_without_negatives,
    warn_without_positives,
)
from crossalign.operators.transforms import requires_gradient


def loss_of_one_process(arguments: LossArguments) -> Tensor | tuple[Tensor, ContrastiveStats]:
    """fused_contrastive_loss without a group; arguments: checked."""
    options, use_triton = arguments.options, takes_triton(arguments)
    if not use_triton and (small := small_batch_loss(arguments)) is not None:
        return small
    first = query_key_pass(arguments)
    rules = term_rules(arguments, first.problem.scale)
    in_one_pass = _gradients_fit_one_pass(arguments)
    if in_one_pass and not use_triton:
        loss, sums = _loss_in_one_pass(arguments, first, rules)
        rests = [sums.row_negative_lse]
    elif in_one_pass and one_pass_takes(arguments.query, first.problem):
        loss, sums = one_pass_loss(
            *first.tensors(arguments),
            first.problem,
            arguments.weights,
            options.reduction,
            with_stats=options.return_stats,
        )
        rests = [sums.row_negative_lse]
    elif use_triton and pair_loss_takes(arguments, rules):
        loss, sums = pair_loss(
            *first.tensors(arguments),
            first.problem,
            arguments.weights,
            options.reduction,
            with_stats=options.return_stats,
        )
        rests = [block.rest for block in blocks_of({"query_to_key": first}, [sums]).values()]
    else:
        passes = all_passes(arguments, first)
        all_sums = [
            contrastive_sums(
                *given.tensors(arguments)[:2],
                given.problem,
                negatives=given.tensors(arguments)[2],
                with_stats=options.return_stats and given is first,
                use_triton=use_triton,
            )
            for given in passes.values()
        ]
        sums, blocks = all_sums[0], blocks_of(passes, all_sums)
        terms = combined_terms(sums, blocks, rules, options, use_triton)
        weights = arguments.weights
        if not rules.has_own_key:
            weights = counted_weights(sums, weights)
        loss = reduce_terms(terms, weights, options.reduction)
        rests = [block.rest for block in blocks.values()]
    _warn(arguments, sums, has_no_rest(rests))
    if options.return_stats:
        return loss, contrastive_stats(sums, rules)
    return loss


def _loss_in_one_pass(
    arguments: LossArguments, first: Pass, rules: TermRules
) -> tuple[Tensor, ContrastiveSums]:
    options, weights = arguments.options, arguments.weights
    # A mean over the rows that have a positive divides by what only the pass can tell.
    is_late_mean = options.reduction == "mean" and not rules.has_own_key
    loss, sums = row_loss(
        *first.tensors(arguments),
        first.problem,
        rules,
        weights,
        "sum" if is_late_mean else options.reduction,
        with_stats=options.return_stats,
    )
    if is_late_mean:
        total = counted_weights(sums, weights).sum()
        loss = loss / torch.where(total > 0, total, 1)
    return loss, sums


def _gradients_fit_one_pass(arguments: LossArguments) -> bool:
    """Whether a gradient is wanted, and is one number times what the forward pass can form."""
    options = arguments.options
    if options.symmetric or len(options.directions) > 1 or options.reduction == "none":
        return False
    if not torch.is_grad_enabled():
        return False
    if arguments.weights is not None and requires_gradient(arguments.weights):
        return False
    wanted = (arguments.query, arguments.key, arguments.negatives, arguments.temperature)
    return any(isinstance(x, Tensor) and requires_gradient(x) for x in wanted)


def _warn(arguments: LossArguments, sums: ContrastiveSums, is_trivial: bool) -> None:
    if torch.compiler.is_compiling():
        return
    counts = sums.row_positive_count
    if not arguments.has_own_key:
        if values_may_be_read(counts) and not bool((counts > 0).any()):
            warn_without_positives()
        return
    has_one = arguments.key.shape[0] == 1 and not (
        arguments.negatives is not None and len(arguments.negatives)
    )
    if has_one or is_trivial:
        warn_without_negatives()
