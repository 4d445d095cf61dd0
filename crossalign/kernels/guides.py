"""The guide's side of a tile: a second product, of the embeddings of a frozen guide.

    guide[i, j] = <guide_query_i, guide_candidate_j>

of unit rows. Up to float32 it is formed of float16 numbers on tensor cores: a number is the sum of
two of them to 22 bits, and three of their four products make a row of 3 G numbers on each side,

    <[high, high, low], [high, low, high]>

whose sum misses the float32 product by less than what counts as a tie. A float32 product takes four
times as long on a GPU. float64 keeps its own numbers.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from crossalign.kernels.contrastive_logits import rows_tile
from crossalign.kernels.launch import dot_operand

# Of each side: a unit row's low halves become normal float16 numbers.
_ROW_SCALE = 2.0**12
_PRODUCT_SCALE = tl.constexpr(_ROW_SCALE**2)
_BLOCK_BITS = tl.constexpr(1024)  # of the features of one step of the product
_BLOCK_BYTES = 128


def guide_operand(guide: Tensor, is_query: bool, accumulator: torch.dtype) -> Tensor:
    """(n, G) unit rows -> (n, W) as guide_tile reads them, W whole blocks, zeros at the end."""
    guide = guide.to(accumulator) * _ROW_SCALE
    if accumulator != torch.float64:
        high = guide.half()
        low = (guide - high).half()
        guide = torch.cat([high, high, low] if is_query else [high, low, high], 1)
    block = _BLOCK_BYTES // guide.element_size()
    return torch.nn.functional.pad(guide, (0, -guide.shape[1] % block))


@triton.jit
def guide_tile(
    rules,  # TileRules
    offs_n,
    offs_m,
    num_queries,
    num_candidates,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    ACC_DTYPE: tl.constexpr,
):
    """[BLOCK_N, BLOCK_M] similarities that the guide sees; 0 outside of the tensors."""
    BLOCK_G: tl.constexpr = _BLOCK_BITS // rules.query_guide_ptr.dtype.element_ty.primitive_bitwidth
    width = rules.guide_width
    products = tl.zeros((BLOCK_N, BLOCK_M), ACC_DTYPE)
    for first_feature in range(0, width, BLOCK_G):
        offs_g = first_feature + tl.arange(0, BLOCK_G)
        query_tile = rows_tile(rules.query_guide_ptr, width, offs_n, offs_g, num_queries, width)
        candidate_tile = rows_tile(
            rules.candidate_guide_ptr, width, offs_m, offs_g, num_candidates, width
        )
        products = tl.dot(
            dot_operand(query_tile),
            dot_operand(candidate_tile).T,
            products,
            input_precision="ieee",
            out_dtype=ACC_DTYPE,
        )
    return products * (1.0 / _PRODUCT_SCALE)
