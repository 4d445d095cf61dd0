"""The compiled operators by themselves, on the CPU: equal to plain PyTorch, registered, strict."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from crossalign.distributed import symmetric_gather
from tests.support.built_extension import extension_folder, use_extension
from tests.support.tolerances import assert_within_rule

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
NARROW = DTYPES[:3]


@pytest.fixture(autouse=True, scope="module")
def _extension() -> None:
    use_extension(extension_folder())


def ops() -> Any:
    return torch.ops.crossalign_ext


def status() -> Tensor:
    return torch.zeros(1, dtype=torch.int32)


def addresses(tensors: Sequence[Tensor]) -> list[int]:
    return [tensor.data_ptr() for tensor in tensors]


CASTS = [(one, other) for one in NARROW for other in NARROW] + [(torch.float64, torch.float64)]


@pytest.mark.parametrize(("dtype", "published_dtype"), CASTS)
@pytest.mark.parametrize("shape", [(0, 4), (1, 1), (5, 37), (70, 1024)])
def test_publish_casts_and_normalizes(
    shape: tuple[int, int], dtype: torch.dtype, published_dtype: torch.dtype
) -> None:
    rows = torch.randn(shape).to(dtype)
    if len(rows) > 1:
        rows[1] = 0
    published = torch.empty(shape, dtype=published_dtype)
    ops().publish_rows(rows, False, published, status())
    assert torch.equal(published, rows.to(published_dtype))
    ops().publish_rows(rows, True, published, status())
    truth = F.normalize(rows.double(), dim=1)
    if dtype == torch.float64:  # then the truth is no more exact than we are
        torch.testing.assert_close(published, truth, rtol=1e-13, atol=0)
        return
    plain = F.normalize(rows.to(torch.promote_types(dtype, torch.float32)), dim=1)
    assert_within_rule(published, truth, plain.to(published_dtype))


@pytest.mark.parametrize("dtype", [*DTYPES, torch.int64, torch.uint8])
@pytest.mark.parametrize("rows", [(3,), (2, 0, 5), (0, 0), (40, 3)])
def test_pull_concatenates(rows: tuple[int, ...], dtype: torch.dtype) -> None:
    buffers = [(100 * torch.rand(count + 1, 1000)).to(dtype) for count in rows]
    gathered = torch.empty(sum(rows), 1000, dtype=dtype)
    ops().pull_rows(addresses(buffers), list(rows), gathered, status())
    assert torch.equal(gathered, torch.cat([buffer[:-1] for buffer in buffers]))


SUMS = [(one, one) for one in DTYPES] + [(one, torch.float32) for one in NARROW]


@pytest.mark.parametrize(("dtype", "total_dtype"), SUMS)
@pytest.mark.parametrize("num_peers", [1, 3, 9])
def test_sum_adds_in_rank_order_in_float32(
    num_peers: int, dtype: torch.dtype, total_dtype: torch.dtype
) -> None:
    """Bit for bit, minus zero included: 700 columns take three chunks of sums."""
    gradients = [torch.randn(60, 700).to(dtype) for _ in range(num_peers)]
    for gradient in gradients:
        gradient[:, :5] = -0.0
    total = torch.empty(50, 700, dtype=total_dtype)
    ops().sum_rows(addresses(gradients), 7, dtype, total, status())
    expected = gradients[0][7:57].to(torch.promote_types(dtype, torch.float32), copy=True)
    for gradient in gradients[1:]:
        expected += gradient[7:57]
    expected = expected.to(total_dtype)
    assert torch.equal(total, expected)
    assert torch.equal(total.signbit(), expected.signbit())


def test_barrier_waits_for_the_last_rank_and_names_a_missing_one() -> None:
    flags = torch.zeros(2, 2, dtype=torch.int64)
    seen = status()

    def come(rank: int, number: int, timeout_s: float, exchange: int = 0) -> None:
        at = addresses(list(flags))
        ops().barrier(flags, at, rank, number, exchange, timeout_s, status(), seen)

    first = threading.Thread(target=come, args=(0, 1, 30.0))
    first.start()
    first.join(timeout=0.2)
    assert first.is_alive()
    come(1, 1, 30.0)
    first.join(timeout=30)
    assert not first.is_alive() and int(seen) == 0
    come(0, 2, 0.05)
    assert int(seen) == 2  # one more than the rank that is missing


def test_barrier_names_a_rank_of_another_exchange() -> None:
    """It was let through, and a gradient summed rows of another call."""
    flags = torch.zeros(2, 2, dtype=torch.int64)
    at, last = addresses(list(flags)), 2**23 - 1
    for number, theirs, ours, expected in [(1, 4, 4, 0), (2, 4, last, -2), (3, last, last, 0)]:
        seen = status()
        ops().barrier(flags, at, 1, number, theirs, 0.01, status(), status())  # rank 0 is missing
        ops().barrier(flags, at, 0, number, ours, 30.0, status(), seen)
        assert int(seen) == expected


X = torch.zeros(4, 3)
FLAGS = torch.zeros(1, 1, dtype=torch.int64)
CALLS: dict[str, tuple[Any, ...]] = {
    "publish_rows": (X, True, torch.empty(4, 3), status()),
    "pull_rows": ([X.data_ptr()], [4], torch.empty(4, 3), status()),
    "sum_rows": ([X.data_ptr()], 1, torch.float32, torch.empty(2, 3), status()),
    "barrier": (FLAGS, [FLAGS.data_ptr()], 0, 1, 0, 1.0, status(), status()),
}


def test_every_operator_has_a_case() -> None:
    assert set(CALLS) == {name.split("::")[1] for name in registered("crossalign_ext::")}


def registered(prefix: str) -> list[str]:
    names = torch._C._dispatch_get_all_op_names()
    return [name for name in names if name.startswith(prefix)]


@pytest.mark.parametrize("name", CALLS)
def test_operator_is_registered_rightly(name: str) -> None:
    torch.library.opcheck(getattr(ops(), name).default, CALLS[name])


WRONG = torch.zeros(1)
BAD_CALLS = [
    ("publish_rows", 0, X[0], "rows must have 2 dimensions, got 1"),
    ("publish_rows", 0, X.T.contiguous().T, "rows must be contiguous, got strides 1, 4"),
    ("publish_rows", 0, X.long(), "rows must be floating point, got Long"),
    ("publish_rows", 0, X.double(), "float64 rows must stay float64, got Float"),
    ("publish_rows", 2, X.double(), "cannot write Float rows as Double"),
    ("publish_rows", 2, X[:2], r"published must have the shape of rows \(4, 3\), got \(2, 3\)"),
    ("publish_rows", 3, WRONG, "failed must be one int32 on the device of the data, .* 1 of Float"),
    ("barrier", 7, WRONG, "status must be one int32 on the CPU .* got 1 of Float"),
    ("pull_rows", 0, [], "peers must hold 1 to 72 addresses, got 0"),
    ("pull_rows", 0, [1] * 73, "peers must hold 1 to 72 addresses, got 73"),
    ("pull_rows", 0, [0], r"peers\[0\] must be an address, got 0"),
    ("pull_rows", 1, [4, 4], r"peer_rows must have one number per peer \(1\), got 2"),
    ("pull_rows", 1, [-1], "peer_rows must not be negative, got -1"),
    ("pull_rows", 1, [5], "gathered must have 5 rows, the sum of peer_rows, got 4"),
    ("sum_rows", 1, -1, "first_row must not be negative, got -1"),
    ("sum_rows", 2, torch.int32, "peer_dtype must be floating point, got Int"),
    ("sum_rows", 3, X.half(), "total must be Float or its accumulator, got Half"),
    ("barrier", 3, -1, "number must be 0 to 549755813887, got -1"),
    ("barrier", 3, 2**39, "number must be 0 to 549755813887, got 549755813888"),
    ("barrier", 4, 2**23, "exchange must be 0 to 8388607, got 8388608"),
    ("barrier", 2, 1, "rank must be 0 to 0, got 1"),
    ("barrier", 5, 0.0, "timeout_s must be above 0 and at most 86400, got 0"),
    ("barrier", 5, 1e12, "timeout_s must be above 0 and at most 86400, got 1e"),
    ("barrier", 5, float("nan"), "timeout_s must be above 0 and at most 86400, got -?nan"),
]


def test_a_sum_of_rows_beyond_int64_is_named() -> None:
    """It wrapped around, here to the 4 rows that there are."""
    rows = [2**62, 2**62, 2**62, 2**62 + 4]
    with pytest.raises(RuntimeError, match=r"peer_rows must have a sum below 2\^63, got 461168"):
        ops().pull_rows([X.data_ptr()] * 4, rows, torch.empty(4, 3), status())


@pytest.mark.parametrize(("name", "position", "value", "message"), BAD_CALLS)
def test_bad_argument_is_named(name: str, position: int, value: Any, message: str) -> None:
    arguments = list(CALLS[name])
    arguments[position] = value
    with pytest.raises(RuntimeError, match=message):
        getattr(ops(), name)(*arguments)


@pytest.mark.parametrize("operators", [{"barrier": 7}, {"barrier": 8, "part": 1}])
def test_an_extension_of_other_sources_is_not_used(
    operators: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It lies in an editable install until the next build."""
    monkeypatch.setattr(symmetric_gather, "_NUM_ARGUMENTS", operators)
    module, said = symmetric_gather._load.__wrapped__()
    assert module is None
    assert said == "built from the sources of another version; install crossalign again"
