"""The reduced sigmoid loss and its gradients in one pass over the logits, in chunked PyTorch.

A term's derivative follows from its own logit, and for a mean or a sum the upstream gradient is one
number: both are formed while a chunk is at hand. Three products instead of the four of the ops.

Shape suffixes: R rows of a chunk, M keys, T of a tile.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from crossalign.contrastive.chunked.chunk import Chunk
from crossalign.contrastive.chunked.gradient_sums import GradientSums
from crossalign.contrastive.chunked.torch_logits import LogitChunks
from crossalign.contrastive.combine import reduce_terms, term_weights
from crossalign.contrastive.known_gradients import with_gradients
from crossalign.contrastive.problem import GradientNeeds
from crossalign.contrastive.sigmoid.ops import refuse_twice
from crossalign.contrastive.sigmoid.problem import SigmoidProblem
from crossalign.contrastive.sigmoid.torch_passes import negate_positives
from crossalign.contrastive.terms import SOFTPLUS_THRESHOLD
from crossalign.operators.transforms import ops_are_watched, transforms_are_active
from crossalign.precision import without_autocast

TILE_LOGITS = 2**17  # of a tile whose softplus stays in a core's cache


def one_pass_takes(
    query: Tensor, key: Tensor, problem: SigmoidProblem, weights: Tensor | None, reduction: str
) -> bool:
    """Whether a gradient is wanted, and is one number times what the forward pass can form."""
    if ops_are_watched() or transforms_are_active() or not torch.is_grad_enabled():
        return False
    if reduction == "none" or (weights is not None and weights.requires_grad):
        return False
    return any(x.requires_grad for x in (query, key, problem.scale, problem.bias))


def one_pass_loss(
    query: Tensor, key: Tensor, problem: SigmoidProblem, weights: Tensor | None, reduction: str
) -> Tensor:
    """(), differentiable in query, key, problem.scale and bias. reduction: "mean" or "sum"."""
    leaves = (query, key, problem.scale, problem.bias)
    needs = [x.requires_grad for x in leaves]
    with torch.no_grad(), without_autocast(query.device.type):
        chunks = LogitChunks(query, key, problem.logits(key.shape[0]))
        wanted = GradientNeeds(needs[0], needs[1], needs[2])
        sums = GradientSums(chunks, chunks.dtype, wanted)
        by_term, num_terms = term_weights(weights, reduction, len(query), chunks.dtype)
        terms, by_bias = query.new_zeros(2, len(query), dtype=chunks.dtype)
        for chunk in chunks:
            coefficient = 1.0 if by_term is None else by_term[chunk.rows, None]
            _terms_and_gradients(chunks, chunk, problem.bias, terms[chunk.rows])
            chunk.logits_RM.mul_(coefficient / num_terms)
            negate_positives(chunks, chunk.rows, chunk.logits_RM, chunk.positives_RM)
            torch.sum(chunk.logits_RM, 1, out=by_bias[chunk.rows])
            sums.add(chunk)
        # Positives pull the bias up and negatives down: a sum that nearly cancels, hence float64.
        gradients = (*sums.result(), by_bias.sum(dtype=torch.float64))
        loss = reduce_terms(terms, weights, reduction)
    given = [each if need else None for each, need in zip(gradients, needs, strict=True)]
    return with_gradients(loss, leaves, given, refuse_twice)


def _terms_and_gradients(chunks: LogitChunks, chunk: Chunk, bias: Tensor, terms_R: Tensor) -> None:
    """Adds to the terms; replaces the logits by sigmoid(-y z), in place."""
    logits_RM = chunk.logits_RM
    chunk.labels.copy_(chunk.positive_logit)
    logits_RM.add_(bias)
    negate_positives(chunks, chunk.rows, logits_RM, chunk.positives_RM)
    width = max(1, TILE_LOGITS * torch.get_num_threads() // max(1, len(logits_RM)))
    for tile_RT in torch.split(logits_RM, width, 1):
        terms_R += F.softplus(tile_RT, threshold=SOFTPLUS_THRESHOLD).sum(1)
        tile_RT.sigmoid_()
