"""The passes of the pairwise sigmoid loss in plain PyTorch, in chunks.

The same memory promise as the kernels: O((N + M) D) and one workspace of a few rows of logits.

Shape suffixes: R rows of a chunk, N queries, M keys, D features.
"""

from __future__ import annotations

import torch
from torch import Tensor

from crossalign.contrastive.chunked.chunk import label_view
from crossalign.contrastive.chunked.gradient_sums import GradientSums
from crossalign.contrastive.chunked.torch_logits import LogitChunks
from crossalign.contrastive.problem import GradientNeeds
from crossalign.contrastive.sigmoid.problem import SigmoidProblem, SigmoidSums
from crossalign.contrastive.terms import SOFTPLUS_THRESHOLD


def sigmoid_fwd(query: Tensor, key: Tensor, problem: SigmoidProblem) -> SigmoidSums:
    """query: (N, D), key: (M, D)."""
    chunks = LogitChunks(query, key, problem.logits(key.shape[0]))
    terms = query.new_empty(query.shape[0], dtype=chunks.dtype)
    for chunk in chunks:
        rows, logits_RM, positives_RM = chunk.rows, chunk.logits_RM, chunk.positives_RM
        chunk.labels.copy_(chunk.positive_logit)
        logits_RM.add_(problem.bias)
        negate_positives(chunks, rows, logits_RM, positives_RM)
        torch.ops.aten.softplus.out(logits_RM, 1, SOFTPLUS_THRESHOLD, out=logits_RM)
        torch.sum(logits_RM, 1, out=terms[rows])
    return SigmoidSums(terms, chunks.query_inverse_norm, chunks.candidate_inverse_norm)


def sigmoid_bwd(
    query: Tensor, key: Tensor, problem: SigmoidProblem, grad_terms: Tensor, needs: GradientNeeds
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of (query (N, D), key (M, D), scale (), bias ()); unneeded ones have no rows."""
    chunks = LogitChunks(query, key, problem.logits(key.shape[0]))
    gradients = GradientSums(chunks, needs.gradient_dtype(query.dtype), needs)
    by_row = grad_terms.new_empty(grad_terms.shape, dtype=chunks.dtype)
    for chunk in chunks:
        rows, logits_RM, positives_RM = chunk.rows, chunk.logits_RM, chunk.positives_RM
        chunk.labels.copy_(chunk.positive_logit)
        logits_RM.add_(problem.bias)
        negate_positives(chunks, rows, logits_RM, positives_RM)
        logits_RM.sigmoid_().mul_(grad_terms[rows, None])
        negate_positives(chunks, rows, logits_RM, positives_RM)
        torch.sum(logits_RM, 1, out=by_row[rows])
        gradients.add(chunk)
    # Positives pull the bias up and negatives down: a sum that nearly cancels, hence float64.
    grad_bias = by_row.sum(dtype=torch.float64).to(chunks.dtype)
    return *gradients.result(), grad_bias


def negate_positives(
    chunks: LogitChunks, rows: slice, tile_RM: Tensor, positives_RM: Tensor | None
) -> None:
    """Times -y, in place."""
    label_view(tile_RM, chunks.problem, rows).neg_()
    if positives_RM is not None:
        tile_RM.mul_(positives_RM.to(tile_RM.dtype).mul_(-2).add_(1))
