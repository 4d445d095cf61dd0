"""What shapes a tile of logits beyond its product, as the kernels are given it.

Two named tuples, so that a kernel has few parameters: pointers that a program reads from, and
choices that are compiled in. Sizes that follow the batch stay parameters of their own, since Triton
specializes an integer inside of a tuple.
"""

from __future__ import annotations

from typing import Any, NamedTuple


class TileRules(NamedTuple):
    """One number per row or per column each; None where the call has none."""

    scale_ptr: Any  # ()
    query_inverse_norm_ptr: Any = None  # (N,)
    candidate_inverse_norm_ptr: Any = None  # (M,)
    query_ids_ptr: Any = None  # (N,)
    candidate_ids_ptr: Any = None  # (num_ids,)
    negative_owner_ptr: Any = None  # (M - K,)
    row_limit_ptr: Any = None  # (N,) natural units
    column_limit_ptr: Any = None  # (K,)


class TileFlags(NamedTuple):
    """Compiled in."""

    ACC_DTYPE: Any
    PRECISION: str
    NORMALIZE: bool
    USE_DESCRIPTORS: bool
    SYMMETRIC: bool = False
    IS_BOUNDED: bool = False
    HAS_IDS: bool = False
    MULTI_POSITIVE: bool = False
    HAS_OWNERS: bool = False
    SHARE_NEGATIVES: bool = True
    EXCLUDE_OWNED: bool = False
    HAS_LIMITS: bool = False
    HARDNESS_ON: str = "none"  # "none", "all", "in_batch", "owned"
    WITH_LOGIT_SUMS: bool = False
    WITH_BEST: bool = False  # of the forward pass: the best positive of each row
    WITH_STATS: bool = False
    NEED_SCALE_GRAD: bool = False  # of the backward pass
    DTYPE: Any = None  # of what is stored: kept exponentials, the gradient matrix
