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

from crossalign.contrastive.ops import PROBLEM_SCHEMA, refuse_second_derivative
from crossalign.contrastive.problem import ContrastiveProblem, ContrastiveSums, tie_slack
from crossalign.contrastive.sides import joined, needs_of, separated
from crossalign.contrastive.terms import pair_terms, reduce_terms, term_gradients
from crossalign.contrastive.torch_logits import GradientSums, LogitChunks, label_view
from crossalign.contrastive.torch_passes import start_sums, take_labels
from crossalign.precision import accumulator, without_autocast


class RowLoss(NamedTuple):
    """What the op yields; the gradients, in the accumulator dtype, are for an upstream of 1."""

    loss: Tensor  # ()
    positive_logit: Tensor  # (N,) and the next three as in ContrastiveSums
    row_negative_lse: Tensor
    num_above: Tensor
    num_tied: Tensor
    grad_query: Tensor  # (N, D), or without rows where nobody needs it; likewise the next two
    grad_key: Tensor
    grad_negatives: Tensor
    grad_scale: Tensor  # ()


torch.library.define(
    "crossalign::row_loss_fwd",
    f"(Tensor query, Tensor key, Tensor? negatives, {PROBLEM_SCHEMA}, Tensor? weights, "
    "str reduction, bool with_stats, bool need_query, bool need_key, bool need_negatives, "
    f"bool need_scale) -> ({', '.join(['Tensor'] * len(RowLoss._fields))})",
)
torch.library.define(
    "crossalign::row_loss_bwd",
    "(Tensor upstream, Tensor query, Tensor key, Tensor? negatives, Tensor scale, "
    "Tensor grad_query, Tensor grad_key, Tensor grad_negatives, Tensor grad_scale) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
)
_NUM_PROBLEM = len(ContrastiveProblem._fields)


def row_loss(
    query: Tensor,
    key: Tensor,
    negatives: Tensor | None,
    problem: ContrastiveProblem,
    weights: Tensor | None,
    reduction: str,
    *,
    with_stats: bool,
) -> tuple[Tensor, ContrastiveSums]:
    """The reduced loss, differentiable in embeddings and problem.scale; the sums are not.

    problem: not symmetric. weights: (N,) without gradient. reduction: "mean" or "sum".
    """
    needs_grad = [x is not None and x.requires_grad for x in (query, key, negatives, problem.scale)]
    outputs = torch.ops.crossalign.row_loss_fwd(
        query, key, negatives, *problem, weights, reduction, with_stats, *needs_grad
    )
    result, none = RowLoss(*outputs), query.new_empty(0)
    sums = ContrastiveSums(*[none] * len(ContrastiveSums._fields))
    kept = {
        name: getattr(result, name)
        for name in ("positive_logit", "row_negative_lse", "num_above", "num_tied")
    }
    return result.loss, sums._replace(**kept)


@torch.library.impl("crossalign::row_loss_fwd", "CompositeExplicitAutograd")
def _row_loss_fwd(
    query: Tensor, key: Tensor, negatives: Tensor | None, *arguments: Any
) -> tuple[Tensor, ...]:
    problem = ContrastiveProblem(*arguments[:_NUM_PROBLEM])
    weights, reduction, with_stats, *needs_grad = arguments[_NUM_PROBLEM:]
    with without_autocast(query.device.type):
        chunks = LogitChunks(query, joined(key, negatives), problem)
        coefficients = _coefficients(chunks, weights, reduction)
        gradients = GradientSums(chunks, chunks.dtype, needs_of(needs_grad, key, negatives))
        sums = _sums_with_gradients(chunks, coefficients, gradients, with_stats)
        loss = reduce_terms(pair_terms(sums, symmetric=False), weights, reduction)
    shared = (sums.positive_logit, sums.row_negative_lse, sums.num_above, sums.num_tied)
    of_query, of_candidates, of_scale = gradients.result()
    num_keys = key.shape[0] if needs_grad[1] else 0
    of_sides = separated(of_candidates[:num_keys], of_candidates[num_keys:])
    return (loss, *shared, of_query.contiguous(), *of_sides, of_scale)


def _coefficients(chunks: LogitChunks, weights: Tensor | None, reduction: str) -> Tensor:
    """(N,) d loss / d term."""
    num_queries = chunks.query.shape[0]
    if weights is None:
        share = 1 / num_queries if reduction == "mean" else 1.0
        return chunks.query.new_full((num_queries,), share, dtype=chunks.dtype)
    weights = weights.to(chunks.dtype)
    return weights / weights.sum() if reduction == "mean" else weights


def _sums_with_gradients(
    chunks: LogitChunks, coefficients: Tensor, gradients: GradientSums, with_stats: bool
) -> ContrastiveSums:
    """The one pass, which adds to the gradients. coefficients: (N,) d loss / d term."""
    problem = chunks.problem
    sums = start_sums(chunks, with_stats)
    slack = (
        tie_slack(chunks.query, chunks.candidates, problem, sums.positive_logit)
        if with_stats
        else None
    )
    for rows, query_RD, logits_RM, positives_RM in chunks:
        take_labels(sums, slack, rows, logits_RM, positives_RM, problem)
        total, sums.row_negative_lse[rows] = _exponentials(logits_RM, problem.bound)
        by_positive_logit, by_negative_lse, by_positive = term_gradients(
            sums.positive_logit[rows], sums.row_negative_lse[rows], sums.row_positive_count[rows]
        )
        # A row without a rest has 0 everywhere, and no total to divide by.
        by_total = (coefficients[rows] * by_negative_lse / total).masked_fill(total == 0, 0)
        logits_RM.mul_(by_total[:, None])
        if positives_RM is not None:
            by_positive = coefficients[rows] * by_positive
            logits_RM.addcmul_(positives_RM.to(logits_RM.dtype), by_positive[:, None])
        label_view(logits_RM, problem, rows).copy_(coefficients[rows] * by_positive_logit)
        gradients.add(rows, query_RD, logits_RM)
    return sums


def _exponentials(logits_RM: Tensor, bound: float | None) -> tuple[Tensor, Tensor]:
    """Replaces logits by multiples of their exponentials; (R,) their sum, and the logsumexp."""
    if bound is not None:
        total = logits_RM.exp_().sum(1)
        return total, total.log()
    largest = logits_RM.amax(1)
    largest = largest.masked_fill(largest == -torch.inf, 0)
    total = logits_RM.sub_(largest[:, None]).exp_().sum(1)
    return total, total.log() + largest


@torch.library.impl("crossalign::row_loss_bwd", "CompositeExplicitAutograd")
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
    with_stats, need_query, need_key, need_negatives, _ = arguments[-5:]

    def empty(*size: Any, dtype: torch.dtype | None = None) -> Tensor:
        return query.new_empty(size, dtype=dtype or accumulator(query.dtype))

    num_queries = query.shape[0]
    num_features = query.shape[1]
    num_counts = num_queries if with_stats else 0
    num_negatives = negatives.shape[0] if need_negatives and negatives is not None else 0
    return RowLoss(
        loss=empty(),
        positive_logit=empty(num_queries),
        row_negative_lse=empty(num_queries),
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


torch.library.register_fake("crossalign::row_loss_fwd", _row_loss_fwd_fake)
torch.library.register_fake("crossalign::row_loss_bwd", _row_loss_bwd_fake)


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    result = RowLoss(*output)
    ctx.save_for_backward(*inputs[:4], *result[-4:])
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, upstream: Tensor | None, *others: None) -> tuple[Any, ...]:
    if upstream is None:
        return (None,) * (3 + _NUM_PROBLEM + 7)
    gradients = torch.ops.crossalign.row_loss_bwd(upstream, *ctx.saved_tensors)
    wanted = zip(gradients, ctx.needs_input_grad[:4], strict=True)
    no_gradient = (None,) * (_NUM_PROBLEM - 1 + 7)
    return (*(grad if is_needed else None for grad, is_needed in wanted), *no_gradient)


torch.library.register_autograd(
    "crossalign::row_loss_fwd", _backward, setup_context=_save_for_backward
)
torch.library.register_autograd("crossalign::row_loss_bwd", refuse_second_derivative)
