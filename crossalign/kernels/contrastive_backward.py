"""Gradients of the contrastive sums by recomputed logits: a tile kernel and matrix products.

    G[i, j] = d loss / d z[i, j] = a_i e^z + b_j e^z, and grad_positive_logit[i] at the positive

The kernel recomputes a chunk of logits and writes H, of which gradient_products forms the gradients
of both sides. 6 N M D operations, 8 N M D with the forward pass; a side that needs no gradient
costs no product and no buffer. The temperature gradient sums G * similarity in float32 before G is
rounded.
"""

from __future__ import annotations

import torch
from torch import Tensor

from crossalign.contrastive.problem import (
    ContrastiveGrads,
    ContrastiveProblem,
    ContrastiveSums,
    GradientNeeds,
    label_range,
)
from crossalign.kernels.contrastive_coefficients import PairGradient, coefficients
from crossalign.kernels.contrastive_gradient import gradient_tiles
from crossalign.kernels.contrastive_logits import LN_2
from crossalign.kernels.gradient_products import (
    chunks_of,
    float16_factor,
    gradient_products,
    product_sides,
)
from crossalign.kernels.kept_exponentials import kept_gradient
from crossalign.kernels.launch import device_guard
from crossalign.kernels.operands import TileOperands
from crossalign.kernels.tiles import GradientChunk, backward_tiles


def contrastive_bwd(
    query: Tensor,
    candidates: Tensor,
    problem: ContrastiveProblem,
    sums: ContrastiveSums,
    grads: ContrastiveGrads,
    needs: GradientNeeds,
    kept: Tensor | None = None,
    pairs: PairGradient | None = None,
    num_terms: int = 1,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of (query (N, D), wanted candidates (m, D), scale ()); of size 0 if not needed.

    kept: the exponentials, if the forward pass kept them. pairs, num_terms: what the gradients of
    the sums follow from, but for float16; grads then only has room for that of the positive logits.
    """
    if problem.same_side and needs.query and not (needs.scale and len(candidates) > len(query)):
        return _mirrored_bwd(query, candidates, problem, sums, grads, needs)
    norms = (sums.query_inverse_norm, sums.candidate_inverse_norm) if problem.normalize else None
    operands = TileOperands.make(query, candidates, problem, norms)
    problem, tiles = operands.problem, backward_tiles(query, operands.problem)
    # A logit's gradient is at most six times the largest coefficient: below float16's 65,504.
    factor = float16_factor(query, lambda: _largest_coefficient(grads))
    sides, chunks = product_sides(operands, factor), chunks_of(operands, needs, tiles)
    num_partials = sum(chunk.num_tiles(tiles) for chunk in chunks)
    scale_partial = problem.scale.new_empty(num_partials) if needs.scale else None
    with device_guard(query):
        vectors = coefficients(
            *(grads, sums, problem, *sides.norm_shares, len(candidates), factor, pairs, num_terms)
        )

        def fill(chunk: GradientChunk, gradient: Tensor) -> None:
            if kept is not None and scale_partial is None:
                kept_gradient(kept, vectors, chunk, gradient, problem)
            else:
                gradient_tiles(operands, vectors, tiles, chunk, gradient, scale_partial)

        grad_query, grad_candidates = gradient_products(
            operands, sides, chunks, grads.positive_logit, needs, fill
        )
    if scale_partial is None:
        return grad_query, grad_candidates, problem.scale.new_empty(0)
    return grad_query, grad_candidates, _scale_gradient(problem, sums, grads, scale_partial, factor)


def _mirrored_bwd(
    query: Tensor,
    candidates: Tensor,
    problem: ContrastiveProblem,
    sums: ContrastiveSums,
    grads: ContrastiveGrads,
    needs: GradientNeeds,
) -> tuple[Tensor, Tensor, Tensor]:
    """Where the candidates begin with the queries: z[i, j] = z[j, i], so with b_j = a_j one product
    of H forms what a row gets as a query and as a candidate. All of it is the gradient of query."""
    num_queries = len(query)
    both_ways = problem._replace(same_side=False, symmetric=True)
    sums = sums._replace(column_negative_lse=sums.row_negative_lse)
    grads = grads._replace(
        column_negative_lse=grads.row_negative_lse, column_logit_sum=grads.row_logit_sum
    )
    wanted = needs.wanted(len(candidates))
    further = slice(max(num_queries, wanted.start), max(num_queries, wanted.stop))
    of_further = needs._replace(candidates=further.start < further.stop, candidate_rows=further)
    grad_query, grad_further, grad_scale = contrastive_bwd(
        query, candidates, both_ways, sums, grads, of_further
    )
    missing = wanted.stop - wanted.start - len(grad_further)
    grad_candidates = torch.nn.functional.pad(grad_further, (0, 0, missing, 0))
    return grad_query, grad_candidates, grad_scale / 2  # every logit has counted twice


def _largest_coefficient(grads: ContrastiveGrads) -> Tensor:
    in_matrix = [part for part in grads[1:] if part.numel()]  # all but those of the positives
    return torch.stack([part.abs().amax() for part in in_matrix]).amax()


def _scale_gradient(
    problem: ContrastiveProblem,
    sums: ContrastiveSums,
    grads: ContrastiveGrads,
    scale_partial: Tensor,
    factor: Tensor | None,
) -> Tensor:
    """() sum of G * similarity: the tiles' sums, and the positives that are here."""
    # In log2 units, which hold a factor of log2(e) * scale.
    rest: Tensor = scale_partial.sum() * LN_2.value
    if factor is not None:
        rest = rest / factor
    if problem.exclude_label:
        return rest / problem.scale
    first, _, count = label_range(problem, 0, grads.positive_logit.shape[0])
    here = slice(first, first + count)
    positive_logit = (grads.positive_logit[here] * sums.positive_logit[here]).sum()
    return (positive_logit + rest) / problem.scale
