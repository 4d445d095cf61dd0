"""Gradients of the pairwise sigmoid loss by recomputed logits: a tile kernel and matrix products.

    H[i, j] = G[i, j] * rq_i * rk_j,   G[i, j] = g_i * -y sigmoid(-y z[i, j]), 0 at the own key

The kernel writes a chunk of H, rounded to the input dtype, of which gradient_products forms the
gradients of both sides. The own key's gradient is the largest of its row by far, and rounding it
would be the error of the whole; it is added to the products in float32. The gradients of scale and
bias sum G before the rounding. 6 N M D operations, less what needs no gradient; reads 2 operand
tiles per tile, writes each element of H once.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from crossalign.contrastive.problem import GradientNeeds, label_range
from crossalign.contrastive.sigmoid.problem import SigmoidProblem, SigmoidSums
from crossalign.kernels.contrastive_logits import (
    BATCH_SIZES,
    LN_2,
    LOG2_E,
    holds_labels,
    label_mask,
)
from crossalign.kernels.gradient_products import (
    chunks_of,
    float16_factor,
    gradient_products,
    product_sides,
)
from crossalign.kernels.launch import device_guard, store_tile
from crossalign.kernels.operands import TileOperands, gradient_arguments
from crossalign.kernels.positive_logits import positive_logits
from crossalign.kernels.sigmoid_logits import negate_positives, sigmoid, unbiased_logits
from crossalign.kernels.tiles import GradientChunk, Tiles, backward_tiles, program_slots


class SigmoidVectors(NamedTuple):
    """What the tile kernel reads beside the rules."""

    bias: Tensor  # ()
    grad_terms: Tensor  # (N,)
    row_norm_share: Tensor | None  # (N,)
    column_norm_share: Tensor | None  # (M,)


@triton.jit(
    do_not_specialize=[
        *BATCH_SIZES, "first_chunk_row", "first_chunk_column", "first_partial",
    ]
)  # fmt: skip
def _sigmoid_bwd_kernel(
    query,  # (N, D) descriptor, or pointer
    candidates,  # (M, D) descriptor, or pointer
    rules,  # TileRules
    vectors,  # SigmoidVectors
    gradient_out,  # (whole tiles of rows, of columns) descriptor, or pointer
    scalar_partials,  # (tiles of all chunks,) twice, out: sums of G * (z - bias), of G
    strides,  # of query, candidates, gradient_out
    weights,  # unread
    num_queries, num_candidates, num_keys, num_ids, num_features, label_offset,
    first_chunk_row, first_chunk_column, num_tiles_m, num_tiles, first_partial,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
    flags: tl.constexpr,  # TileFlags
):  # fmt: skip
    """H of the tiles of one chunk, dealt to programs round-robin."""
    for tile in tl.range(tl.program_id(0), num_tiles, tl.num_programs(0), flatten=True):
        first_row = first_chunk_row + tile // num_tiles_m * BLOCK_N
        first_column = first_chunk_column + tile % num_tiles_m * BLOCK_M
        logits = unbiased_logits(
            query, candidates, rules, strides, first_row, first_column, num_queries,
            num_candidates, num_features, BLOCK_N, BLOCK_M, BLOCK_D, flags,
        )  # fmt: skip
        offs_n = first_row + tl.arange(0, BLOCK_N)
        offs_m = first_column + tl.arange(0, BLOCK_M)
        in_range_n = offs_n < num_queries
        in_range_m = offs_m < num_candidates
        signed = negate_positives(
            logits + tl.load(vectors.bias) * LOG2_E, rules, first_row, first_column, num_queries,
            num_candidates, label_offset, BLOCK_N, BLOCK_M, flags.HAS_IDS,
        )  # fmt: skip
        gradient = negate_positives(
            sigmoid(signed), rules, first_row, first_column, num_queries, num_candidates,
            label_offset, BLOCK_N, BLOCK_M, flags.HAS_IDS,
        )  # fmt: skip
        gradient *= tl.load(vectors.grad_terms + offs_n, mask=in_range_n, other=0.0)[:, None]
        if holds_labels(first_row, first_column, label_offset, BLOCK_N, BLOCK_M):
            is_label = label_mask(offs_n, offs_m, label_offset, num_candidates)
            gradient = tl.where(is_label, 0.0, gradient)
        if flags.NEED_SCALE_GRAD:
            counted = tl.where(in_range_m[None, :], gradient, 0.0)
            tl.store(scalar_partials[0] + first_partial + tile, tl.sum(counted * logits))
            tl.store(scalar_partials[1] + first_partial + tile, tl.sum(counted))
        if flags.NORMALIZE:
            of_rows = tl.load(vectors.row_norm_share + offs_n, mask=in_range_n, other=0.0)
            gradient *= of_rows[:, None]
            of_columns = tl.load(vectors.column_norm_share + offs_m, mask=in_range_m, other=0.0)
            gradient *= of_columns[None, :]
        store_tile(
            gradient_out, gradient.to(flags.DTYPE), strides[2], first_row - first_chunk_row,
            first_column - first_chunk_column, flags.USE_DESCRIPTORS,
        )  # fmt: skip


def _gradient_tiles(
    operands: TileOperands,
    vectors: SigmoidVectors,
    tiles: Tiles,
    chunk: GradientChunk,
    gradient: Tensor,
    partials: Tensor | None,
) -> None:
    """Fills gradient (whole tiles of the chunk's rows and columns) with H; partials: (2, tiles)."""
    _sigmoid_bwd_kernel[(min(chunk.num_tiles(tiles), program_slots(operands.query)),)](
        **gradient_arguments(
            operands, tiles, chunk, gradient, need_scale_grad=partials is not None
        ),
        vectors=vectors,
        scalar_partials=(None, None) if partials is None else (partials[0], partials[1]),
    )


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
    sides, chunks = product_sides(operands, factor), chunks_of(operands, needs, tiles)
    num_partials = sum(chunk.num_tiles(tiles) for chunk in chunks)
    partials = problem.scale.new_empty(2, num_partials) if needs.scale else None
    with device_guard(query):
        logit = positive_logits(operands, tiles)[0]
        first, _, count = label_range(operands.problem, 0, len(grad_terms))
        own = slice(first, first + count)
        grad_own = torch.zeros_like(logit)
        grad_own[own] = -grad_terms[own] * torch.sigmoid(-(logit[own] + problem.bias))
        scaled_terms = grad_terms if factor is None else grad_terms * factor
        vectors = SigmoidVectors(problem.bias, scaled_terms, *sides.norm_shares)

        def fill(chunk: GradientChunk, gradient: Tensor) -> None:
            _gradient_tiles(operands, vectors, tiles, chunk, gradient, partials)

        grad_query, grad_key = gradient_products(operands, sides, chunks, grad_own, needs, fill)
    if partials is None:
        return grad_query, grad_key, torch.zeros_like(problem.scale), torch.zeros_like(problem.bias)
    # Positives pull the bias up and negatives down: sums that nearly cancel, hence float64.
    of_logits, of_bias = partials.sum(1, dtype=torch.float64) / (1 if factor is None else factor)
    of_logits = of_logits * LN_2.value + (grad_own * logit).sum(dtype=torch.float64)
    of_bias = of_bias + grad_own.sum(dtype=torch.float64)
    dtype = problem.scale.dtype
    return grad_query, grad_key, (of_logits / problem.scale).to(dtype), of_bias.to(dtype)
