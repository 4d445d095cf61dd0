"""One direction, mean or sum, without Triton: the loss and its gradients in one pass.

A chunk holds whole rows of logits, so their softmax is known while the logits are still at hand.
Where no column term waits for rows to come and the upstream gradient is one number, the gradients
can be formed at once: three products instead of the four of contrastive_fwd and contrastive_bwd,
which compute the logits twice. The backward pass only scales them.

Shape suffixes: R rows of a chunk, N queries, M candidates, D features.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from crossalign.contrastive.chunked.chunk import Chunk
from crossalign.contrastive.chunked.exponentials import Exponentials
from crossalign.contrastive.chunked.gradient_sums import GradientSums, RowParts
from crossalign.contrastive.chunked.torch_logits import LogitChunks
from crossalign.contrastive.chunked.torch_passes import kept_logits, start_sums, take_labels
from crossalign.contrastive.combine import reduce_terms, term_weights
from crossalign.contrastive.ops import refuse_twice
from crossalign.contrastive.problem import (
    ContrastiveProblem,
    ContrastiveSums,
    label_range,
    tie_slack,
)
from crossalign.contrastive.sides import (
    NeededSides,
    SideGradients,
    Sides,
    joined,
    needs_of,
    separated,
)
from crossalign.contrastive.terms import (
    BlockSums,
    TermGradients,
    TermRules,
    block_term,
    row_block,
    term_gradients,
)
from crossalign.operators.registration import register_op
from crossalign.operators.transforms import requires_gradient
from crossalign.precision import accumulator, without_autocast


class RowLoss(NamedTuple):
    """What the op yields; the gradients, in the accumulator dtype, are for an upstream of 1."""

    loss: Tensor  # ()
    positive_logit: Tensor  # (N,) and the next as in ContrastiveSums
    row_negative_lse: Tensor
    row_positive_sum: Tensor
    row_positive_count: Tensor
    num_above: Tensor
    num_tied: Tensor
    grad_query: Tensor  # (N, D), or without rows where nobody needs it; likewise the next two
    grad_key: Tensor
    grad_negatives: Tensor
    grad_scale: Tensor  # ()


_KEPT_SUMS = RowLoss._fields[1:7]
_NUM_PROBLEM = len(ContrastiveProblem._fields)


class _Choices(NamedTuple):
    """What the op is given beside the sides and the problem."""

    weights: Tensor | None
    reduction: str
    label_smoothing: float
    debias: Tensor | None
    has_own_key: bool
    with_stats: bool


class _Upstream(NamedTuple):
    upstream: Tensor


class _Scale(NamedTuple):
    scale: Tensor


_NUM_OPTIONS = len(_Choices._fields) + len(NeededSides._fields)


def row_loss(
    query: Tensor,
    key: Tensor,
    negatives: Tensor | None,
    problem: ContrastiveProblem,
    rules: TermRules,
    weights: Tensor | None,
    reduction: str,
    *,
    with_stats: bool,
) -> tuple[Tensor, ContrastiveSums]:
    """The reduced loss, differentiable in embeddings and problem.scale; the sums are not.

    problem: neither symmetric nor same_side. weights: (N,) without gradient; reduction: "mean" or
    "sum"; where the rules have no own key, rows without a positive add nothing.
    """
    sides = (query, key, negatives)
    needs_grad = [x is not None and requires_gradient(x) for x in (*sides, problem.scale)]
    options = (rules.label_smoothing, rules.debias, rules.has_own_key, with_stats)
    outputs = _forward_op(*sides, *problem, weights, reduction, *options, *needs_grad)
    result, none = RowLoss(*outputs), query.new_empty(0)
    sums = ContrastiveSums(*[none] * len(ContrastiveSums._fields))
    return result.loss, sums._replace(**{name: getattr(result, name) for name in _KEPT_SUMS})


def _row_loss_fwd(
    query: Tensor, key: Tensor, negatives: Tensor | None, *arguments: Any
) -> tuple[Tensor, ...]:
    problem = ContrastiveProblem(*arguments[:_NUM_PROBLEM])
    weights, reduction, smoothing, debias, has_own_key, with_stats, *needs_grad = arguments[
        _NUM_PROBLEM:
    ]
    rules = TermRules(smoothing, debias, problem.scale, has_own_key)
    with without_autocast(query.device.type):
        candidates = joined(key, negatives)
        chunks = LogitChunks(query, candidates, problem, may_compare_late=not with_stats)
        coefficients, num_terms = term_weights(weights, reduction, len(query), chunks.dtype)
        if coefficients is None:
            coefficients = query.new_full((), 1 / num_terms, dtype=chunks.dtype).expand(len(query))
        gradients = GradientSums(chunks, chunks.dtype, needs_of(needs_grad, key, negatives))
        sums = _sums_with_gradients(chunks, coefficients, rules, gradients, with_stats)
        terms = block_term(sums.positive_logit, row_block(sums), rules)
        loss = reduce_terms(terms, weights, reduction)
    shared = (getattr(sums, name) for name in _KEPT_SUMS)
    of_query, of_candidates, of_scale = gradients.result()
    num_keys = key.shape[0] if needs_grad[1] else 0
    of_sides = separated(of_candidates[:num_keys], of_candidates[num_keys:])
    return (loss, *shared, of_query.contiguous(), *of_sides, of_scale)


def _sums_with_gradients(
    chunks: LogitChunks,
    coefficients: Tensor,
    rules: TermRules,
    gradients: GradientSums,
    with_stats: bool,
) -> ContrastiveSums:
    """The one pass, which fills the gradients. coefficients: (N,) d loss / d term."""
    problem, sums = chunks.problem, start_sums(chunks, with_stats)
    slack = (
        tie_slack(chunks.query, chunks.candidates, problem, sums.positive_logit)
        if with_stats
        else None
    )
    exponentials = Exponentials(chunks)
    for chunk in chunks:
        rows = chunk.rows
        take_labels(sums, slack, chunk, chunks)
        kept_RM = None
        if rules.label_smoothing and not chunk.keeps_all:
            kept_RM = kept_logits(chunk)[0]
        total, sums.row_negative_lse[rows] = exponentials.of_rows(chunk, problem.bound)
        block = BlockSums(*(x[rows] for x in row_block(sums)))
        row_rules = rules
        if rules.debias is not None and rules.debias.dim():
            row_rules = rules._replace(debias=rules.debias[rows])
        by = _times(term_gradients(sums.positive_logit[rows], block, row_rules), coefficients[rows])
        if by.scale is not None:
            gradients.grad_scale += by.scale.sum()
        gradients.add(chunk, _parts(chunk, by, total, kept_RM, problem))
    return sums


def _times(by: TermGradients, coefficient: Tensor) -> TermGradients:
    """What has no elements keeps none."""
    scaled = {n: x * coefficient for n, x in by._asdict().items() if x is not None and len(x)}
    return by._replace(**scaled)


def _parts(
    chunk: Chunk,
    by: TermGradients,
    total: Tensor,
    kept_RM: Tensor | None,
    problem: ContrastiveProblem,
) -> RowParts | None:
    """The gradients of logits, from multiples of their exponentials with this total, in place."""
    logits_RM = chunk.logits_RM
    # A row without a rest has 0 everywhere, and no total to divide by.
    by_total = (by.rest / total).masked_fill(total == 0, 0)
    if kept_RM is None and chunk.positives_RM is None and not problem.exclude_label:
        first_row, _, count = label_range(problem, chunk.rows.start, chunk.rows.stop)
        labels = by.positive_logit
        if by.logit_sum is not None:
            labels = labels - by.logit_sum
        first_row -= chunk.rows.start
        return RowParts(by_total, by.logit_sum, labels[first_row : first_row + count])
    logits_RM.mul_(by_total[:, None])
    if by.logit_sum is not None and kept_RM is not None:
        logits_RM.addcmul_(kept_RM.to(logits_RM.dtype), by.logit_sum[:, None])
    elif by.logit_sum is not None:
        logits_RM.add_(by.logit_sum[:, None])
    if chunk.positives_RM is not None:
        logits_RM.addcmul_(chunk.positives_RM.to(logits_RM.dtype), by.positive_sum[:, None])
    if problem.exclude_label:
        chunk.labels.zero_()
    else:
        chunk.labels.copy_(by.positive_logit)
    return None


def _row_loss_bwd(upstream: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Gradients of (query, key, negatives, scale), in their dtypes; those unneeded have no rows.

    It is given those four, which it does not read, for autograd to know what it depends on.
    """
    query, scale, gradients = tensors[0], tensors[3], tensors[4:]
    dtypes = (query.dtype, query.dtype, query.dtype, scale.dtype)
    pairs = zip(gradients, dtypes, strict=True)
    return tuple((gradient * upstream).to(dtype).contiguous() for gradient, dtype in pairs)


def _row_loss_fwd_fake(
    query: Tensor, key: Tensor, negatives: Tensor | None, *arguments: Any
) -> tuple[Tensor, ...]:
    problem = ContrastiveProblem(*arguments[:_NUM_PROBLEM])
    with_stats, need_query, need_key, need_negatives, _ = arguments[-5:]

    def empty(*size: Any, dtype: torch.dtype | None = None) -> Tensor:
        return query.new_empty(size, dtype=dtype or accumulator(query.dtype))

    num_queries = query.shape[0]
    num_features = query.shape[1]
    num_counts = num_queries if with_stats else 0
    num_positives = num_queries if problem.multi_positive else 0
    num_negatives = negatives.shape[0] if need_negatives and negatives is not None else 0
    return RowLoss(
        loss=empty(),
        positive_logit=empty(num_queries),
        row_negative_lse=empty(num_queries),
        row_positive_sum=empty(num_positives),
        row_positive_count=empty(num_positives),
        num_above=empty(num_counts, dtype=torch.int32),
        num_tied=empty(num_counts, dtype=torch.int32),
        grad_query=empty(num_queries if need_query else 0, num_features),
        grad_key=empty(key.shape[0] if need_key else 0, num_features),
        grad_negatives=empty(num_negatives, num_features),
        grad_scale=empty(),
    )


def _row_loss_bwd_fake(upstream: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
    query, scale, gradients = tensors[0], tensors[3], tensors[4:]
    of_sides = [query.new_empty(gradient.shape) for gradient in gradients[:3]]
    return (*of_sides, scale.new_empty(()))


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    result = RowLoss(*output)
    ctx.save_for_backward(*inputs[:4], *result[-4:])
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, upstream: Tensor | None, *others: None) -> tuple[Any, ...]:
    if upstream is None:
        return (None,) * (3 + _NUM_PROBLEM + _NUM_OPTIONS)
    gradients = _backward_op(upstream, *ctx.saved_tensors)
    wanted = zip(gradients, ctx.needs_input_grad[:4], strict=True)
    no_gradient = (None,) * (_NUM_PROBLEM - 1 + _NUM_OPTIONS)
    return (*(grad if is_needed else None for grad, is_needed in wanted), *no_gradient)


_forward_op = register_op(
    "row_loss_fwd",
    _row_loss_fwd,
    _row_loss_fwd_fake,
    arguments=(Sides, ContrastiveProblem, _Choices, NeededSides),
    results=RowLoss,
    backward=_backward,
    setup_context=_save_for_backward,
)
_backward_op = register_op(
    "row_loss_bwd",
    _row_loss_bwd,
    _row_loss_bwd_fake,
    arguments=(_Upstream, Sides, _Scale, SideGradients),
    results=SideGradients,
    backward=refuse_twice,
)
