"""Every layout of the queries with every layout of the keys, with negatives and without."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.support.contrastive.loss_outcomes import Inputs
from tests.support.contrastive_cases import assert_outcome, fused
from tests.support.pooling_cases import BACKENDS

NUM_PAIRS, NUM_NEGATIVES = 6, 3
ONE = torch.tensor(1.0)

# What a caller's (n, D) may look like in memory; the kernels read some of these as they are, and
# copy others. Rows of 64 elements are aligned to 16 bytes in every dtype.
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x,
    "slice of aligned rows": lambda x: torch.cat([x, x.new_ones(len(x), 64 - x.shape[1])], 1)[
        :, : x.shape[1]
    ],
    "every other row": lambda x: x.repeat_interleave(2, 0)[::2],
    "every other feature": lambda x: x.repeat_interleave(2, 1)[:, ::2],
    "transposed": lambda x: x.T.contiguous().T,
    "off by one element": lambda x: torch.cat([x.new_ones(1), x.flatten()])[1:].view(x.shape),
}
PAIRS = list(itertools.product(LAYOUTS, LAYOUTS))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("with_negatives", [False, True])
# Rows of 5 and 18 elements are no multiple of 16 bytes; 18 go past one tile of D.
@pytest.mark.parametrize(
    ("dtype", "width"), [(torch.float32, 5), (torch.float32, 18), (torch.float16, 18)]
)
def test_every_pair_of_layouts_gives_the_same(
    dtype: torch.dtype, width: int, with_negatives: bool, backend: str
) -> None:
    """Rows padded to 16 bytes for one side and not for the other gave sums of two widths: PyTorch
    resized a view to take one of them, and what the view belonged to stayed unwritten."""
    sizes = {"query": NUM_PAIRS, "key": NUM_PAIRS}
    if with_negatives:
        sizes["negatives"] = NUM_NEGATIVES
    rows = {name: torch.randn(size, width).to(dtype) for name, size in sizes.items()}
    options = {"symmetric": width == 18}
    contiguous = fused(Inputs(rows, options), backend, ONE)
    assert_outcome(contiguous, Inputs(rows, options), ONE)
    for of_query, of_key in PAIRS:
        if with_negatives and of_key != "contiguous":
            continue  # keys and negatives become one contiguous matrix
        leaves = rows | {
            "query": LAYOUTS[of_query](rows["query"]),
            "key": LAYOUTS[of_key](rows["key"]),
        }
        assert all(torch.equal(leaves[name], rows[name]) for name in rows)
        got = fused(Inputs(leaves, options), backend, ONE)
        name = f"query {of_query}, key {of_key}"
        torch.testing.assert_close(got.loss, contiguous.loss, msg=name)
        torch.testing.assert_close(got.grads, contiguous.grads, msg=name)
