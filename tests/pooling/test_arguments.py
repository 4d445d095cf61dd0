"""Every message that pooling gives for bad input."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from crossalign.pooling.choices import Pooling
from crossalign.pooling.functions import (
    last_token_pool,
    masked_max_pool,
    masked_mean_pool,
    mean_pool_varlen,
    pool,
)

POOLS = {"mean": masked_mean_pool, "last": last_token_pool, "max": masked_max_pool}
HIDDEN, MASK, BOUNDS = torch.zeros(2, 3, 4), torch.ones(2, 3), torch.tensor([0, 2, 6])


@pytest.mark.parametrize("name", POOLS)
@pytest.mark.parametrize(
    ("hidden", "mask", "error", "message"),
    [
        ([1.0], MASK, TypeError, "hidden must be a torch.Tensor, got list"),
        (HIDDEN, None, TypeError, "mask must be a torch.Tensor, got NoneType"),
        (HIDDEN[0], MASK, ValueError, r"hidden must have shape \(B, T, C\), got \(3, 4\)"),
        (HIDDEN.long(), MASK, ValueError, "hidden must be float32, .* got torch.int64"),
        (HIDDEN, MASK[0], ValueError, r"mask must have shape \(B, T\), got \(3,\)"),
        (HIDDEN, MASK[:1], ValueError, r"mask must have size 2 in dimension 0 \(B of hidden\)"),
        (HIDDEN, MASK[:, :2], ValueError, r"mask must have size 3 in dimension 1 \(T of hidden\)"),
        (HIDDEN, MASK.to("meta"), ValueError, r"mask must be on the device of hidden \(cpu\)"),
        (
            HIDDEN,
            MASK.to(torch.complex64),
            TypeError,
            "mask must hold integers, got torch.complex64",
        ),
        (HIDDEN.to_sparse(), MASK, ValueError, r"hidden must be a dense tensor.*\.to_dense\(\)"),
        (HIDDEN, MASK.to_sparse(), ValueError, "mask must be a dense tensor, got torch.sparse_coo"),
        (HIDDEN, -MASK, ValueError, "mask must be finite and not negative, got -1.0"),
        (HIDDEN, -MASK.long(), ValueError, "mask must not be negative, got -1"),
        (HIDDEN, MASK / 0, ValueError, "mask must be finite and not negative, got inf"),
        (HIDDEN, MASK * float("nan"), ValueError, "mask must be finite and not negative, got nan"),
    ],
)
def test_bad_padded_input(
    name: Pooling, hidden: Any, mask: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=f"^{POOLS[name].__name__}: {message}"):
        pool(hidden, mask, name)


@pytest.mark.parametrize(
    ("hidden", "bounds", "error", "message"),
    [
        (None, BOUNDS, TypeError, "hidden must be a torch.Tensor, got NoneType"),
        (HIDDEN[0], [0, 6], TypeError, "cu_seqlens must be a torch.Tensor, got list"),
        (HIDDEN, BOUNDS, ValueError, r"hidden must have shape \(total, C\), got \(2, 3, 4\)"),
        (HIDDEN[0].long(), BOUNDS, ValueError, "hidden must be float32, .* got torch.int64"),
        (HIDDEN[0], MASK, ValueError, r"cu_seqlens must have shape \(B \+ 1,\), got \(2, 3\)"),
        (HIDDEN[0], BOUNDS.short(), TypeError, "cu_seqlens must hold int32 or int64, got torch.i"),
        (HIDDEN[0], BOUNDS.to("meta"), ValueError, "cu_seqlens must be on the device of hidden"),
        (HIDDEN[0], BOUNDS[:0], ValueError, "cu_seqlens must hold at least the leading 0"),
        (HIDDEN[0], BOUNDS, ValueError, r"cu_seqlens must rise from 0 to 3, .*got \[0, 2, 6\]"),
        (HIDDEN[0], BOUNDS[1:] - 1, ValueError, "cu_seqlens must rise from 0"),
        (HIDDEN[0], torch.tensor([0, 2, 1, 3]), ValueError, "cu_seqlens must rise from 0"),
        (HIDDEN[0], torch.arange(20), ValueError, r"got \[0, 1, 2, 3, '...', 16, 17, 18, 19\]"),
    ],
)
def test_bad_packed_input(hidden: Any, bounds: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^mean_pool_varlen: .*{message}"):
        mean_pool_varlen(hidden, bounds)


def test_bad_options() -> None:
    with pytest.raises(ValueError, match=r"pool: mode must be one of 'mean', .*, got 'median'"):
        pool(HIDDEN, MASK, "median")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"masked_mean_pool: backend must be one of .*'cuda'"):
        masked_mean_pool(HIDDEN, MASK, backend="cuda")  # type: ignore[arg-type]
    for name, function in POOLS.items():
        message = rf"^{function.__name__}: normalize must be True or False, got 2 \(int\)"
        with pytest.raises(TypeError, match=message):
            pool(HIDDEN, MASK, name, normalize=2)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^mean_pool_varlen: normalize must be True or False"):
        mean_pool_varlen(HIDDEN.flatten(0, 1), BOUNDS, normalize="no")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"mean_pool_varlen: backend must be one of .*'cuda'"):
        mean_pool_varlen(HIDDEN.flatten(0, 1), BOUNDS, backend="cuda")  # type: ignore[arg-type]


def test_triton_refuses_a_device_without_kernels() -> None:
    with pytest.raises(ValueError, match='backend="triton" cannot run here: '):
        masked_mean_pool(HIDDEN.to("meta"), MASK.to("meta"), backend="triton")


@pytest.mark.cuda
def test_values_on_a_gpu_are_read_on_demand(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, mask, bounds = HIDDEN.cuda(), -MASK.cuda(), BOUNDS.cuda() + 1
    monkeypatch.setenv("CROSSALIGN_CHECK", "1")
    with pytest.raises(ValueError, match=r"mask must be finite and not negative, got -1\.0"):
        masked_mean_pool(hidden, mask)
    with pytest.raises(ValueError, match="cu_seqlens must rise from 0 to 6"):
        mean_pool_varlen(hidden.flatten(0, 1), bounds)
    monkeypatch.delenv("CROSSALIGN_CHECK")
    masked_mean_pool(hidden, mask)
    mean_pool_varlen(hidden.flatten(0, 1), bounds)
