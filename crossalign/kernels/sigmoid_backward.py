"""Gradients of the pairwise sigmoid loss by recomputed logits: a tile kernel and matrix products.

    G[i, j] = d loss / d z[i, j] = g_i * -y sigmoid(-y z[i, j])

The kernel writes a chunk of H, of which gradient_products forms the gradients of both sides; the
own keys' part, the largest of each row, is added in float32. 6 N M D operations, less what needs no
gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor

from crossalign.contrastive.problem import GradientNeeds, label_range
from crossalign.contrastive.sigmoid.problem import SigmoidProblem, SigmoidSums
from crossalign.kernels.contrastive_logits import LN_2
from crossalign.kernels.gradient_products import (
    chunks_of,
    float16_factor,
    folded_sides,
    gradient_products,
)
from crossalign.kernels.launch import device_guard
from crossalign.kernels.operands import TileOperands
from crossalign.kernels.positive_logits import positive_logits
from crossalign.kernels.sigmoid_gradient import SigmoidVectors, sigmoid_gradient_tiles
from crossalign.kernels.tiles import GradientChunk, backward_tiles


def sigmoid_bwd(
    query: Tensor,
    key: Tensor,
    problem: SigmoidProblem,
    sums: SigmoidSums,
    grad_terms: Tensor,
    needs: GradientNeeds,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of (query (N, D), key (M, D), scale (), bias ()); unneeded ones have no rows."""
    norms = (sums.query_inverse_norm, sums.key_inverse_norm) if problem.normalize else None
    operands = TileOperands.make(query, key, problem.logits(key.shape[0]), norms)
    tiles = backward_tiles(query, operands.problem)
    factor = float16_factor(query, lambda: grad_terms.abs().amax())
    sides, chunks = folded_sides(operands, factor), chunks_of(operands, needs, tiles)
    num_partials = sum(chunk.num_tiles(tiles) for chunk in chunks)
    partials = problem.scale.new_empty(2, num_partials) if needs.scale else None
    with device_guard(query):
        logit = positive_logits(operands, tiles)[0]
        first, _, count = label_range(operands.problem, 0, len(grad_terms))
        own = slice(first, first + count)
        grad_own = torch.zeros_like(logit)
        grad_own[own] = -grad_terms[own] * torch.sigmoid(-(logit[own] + problem.bias))
        scaled_terms = grad_terms if factor is None else grad_terms * factor
        vectors = SigmoidVectors(problem.bias, scaled_terms, *sides.folds)

        def fill(chunk: GradientChunk, gradient: Tensor) -> None:
            sigmoid_gradient_tiles(operands, vectors, tiles, chunk, gradient, partials)

        grad_query, grad_key = gradient_products(operands, sides, chunks, grad_own, needs, fill)
    if partials is None:
        return grad_query, grad_key, torch.zeros_like(problem.scale), torch.zeros_like(problem.bias)
    # Positives pull the bias up and negatives down: sums that nearly cancel, hence float64.
    of_logits, of_bias = partials.sum(1, dtype=torch.float64) / (1 if factor is None else factor)
    of_logits = of_logits * LN_2.value + (grad_own * logit).sum(dtype=torch.float64)
    of_bias = of_bias + grad_own.sum(dtype=torch.float64)
    dtype = problem.scale.dtype
    return grad_query, grad_key, (of_logits / problem.scale).to(dtype), of_bias.to(dtype)
