"""The registered pooling ops: registration, compilation, what they read, allocate and repeat."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from crossalign.backends import Backend
from crossalign.pooling import ops, torch_passes
from crossalign.pooling.choices import Pooling
from crossalign.pooling.functions import masked_mean_pool, mean_pool_varlen, pool
from tests.support.counted import LargestAllocation
from tests.support.pooling_cases import (
    BACKENDS,
    RUNS,
    Run,
    cumulative,
    lengths_mask,
    result_and_grad,
)

OPS = torch.ops.crossalign
BOTH = pytest.mark.parametrize("normalize", [False, True], ids=["raw", "unit"])


# Registration


def op_calls(use_triton: bool, normalize: bool) -> dict[str, tuple[Any, ...]]:
    """Arguments for every op of pooling."""
    hidden = torch.randn(3, 5, 4, requires_grad=True)
    mask, bounds = lengths_mask(5, 0, 2)(5), cumulative([5, 0, 2])
    packed = hidden.detach()[mask].requires_grad_()
    unit = torch.nn.functional.normalize(torch.randn(3, 4)) if normalize else None
    grad, scale = torch.randn(3, 4), torch.tensor([0.2, 0.0, 0.5])
    return {
        "masked_mean_pool_fwd": (hidden, mask, normalize, use_triton),
        "masked_mean_pool_bwd": (grad, mask, unit, scale, use_triton),
        "mean_pool_varlen_fwd": (packed, bounds, normalize, use_triton),
        "mean_pool_varlen_bwd": (grad, bounds, unit, scale, 7, use_triton),
    }


@pytest.mark.filterwarnings("default:The .grad attribute")  # of PyTorch 2.15's opcheck itself
@BOTH
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("op", op_calls(False, False))
def test_opcheck(op: str, backend: str, normalize: bool) -> None:
    arguments = op_calls(backend == "triton", normalize)[op]
    torch.library.opcheck(getattr(OPS, op).default, arguments)


def test_every_pooling_op_is_checked() -> None:
    registered = {name for name in torch._C._dispatch_get_all_op_names() if "crossalign::" in name}
    pooling = {name.removeprefix("crossalign::") for name in registered if "pool" in name}
    assert pooling == set(op_calls(False, False))


@pytest.mark.parametrize("backend", BACKENDS)
def test_mean_compiles_without_graph_break(backend: Backend) -> None:
    def loss(hidden: Tensor, mask: Tensor) -> Tensor:
        padded = masked_mean_pool(hidden, mask, normalize=True, backend=backend)
        bounds = torch.arange(hidden.shape[0] + 1, dtype=torch.int32) * hidden.shape[1]
        packed = mean_pool_varlen(hidden.flatten(0, 1), bounds, backend=backend)
        return (padded * packed).sum()

    check_compiled(loss)


@pytest.mark.parametrize("name", ["mean", "last", "max"])
def test_pool_compiles_without_graph_break(name: Pooling) -> None:
    check_compiled(lambda hidden, mask: pool(hidden, mask, name, normalize=True).square().sum())


def check_compiled(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Same loss and gradient as eager, for several sizes, from one graph with dynamic shapes."""
    torch._dynamo.reset()
    graphs = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend=backend)
    for lengths in ([5, 3], [7, 2, 6]):
        hidden = torch.randn(len(lengths), max(lengths), 4, requires_grad=True)
        mask = lengths_mask(*lengths)(max(lengths))
        (expected,) = torch.autograd.grad(loss(hidden, mask), hidden)
        (grad,) = torch.autograd.grad(compiled(hidden, mask), hidden)
        torch.testing.assert_close(grad, expected)
    assert len(graphs) == 1, "another size compiled another graph"


@pytest.mark.parametrize("backend", BACKENDS)
def test_differentiating_twice_raises(backend: Backend) -> None:
    hidden = torch.randn(2, 3, 4, requires_grad=True)
    for pooled in (
        masked_mean_pool(hidden, torch.ones(2, 3), backend=backend),
        mean_pool_varlen(hidden.flatten(0, 1), cumulative([3, 3]), backend=backend),
    ):
        (grad,) = torch.autograd.grad(pooled.square().sum(), hidden, create_graph=True)
        with pytest.raises(RuntimeError, match="mean pooling cannot be differentiated twice"):
            torch.autograd.grad(grad.square().sum(), hidden)


READ_ONE_TOKEN = """
import sys
import numpy as np, torch
from crossalign.pooling.functions import masked_mean_pool

class Strided:
    # One real vector; every further token would lie a terabyte beyond it.
    def __init__(self, vector, interface):
        self.vector = vector
        setattr(self, interface, dict(
            shape=(1, 40, 16), strides=(0, 2**40, 4), typestr="<f4", version=3,
            data=(vector.data_ptr(), False)))

device, read_padding = sys.argv[1], sys.argv[2] == "padding"
vector = torch.ones(16, device=device)
if device == "cuda":
    hidden = torch.as_tensor(Strided(vector, "__cuda_array_interface__"), device=device)
else:
    hidden = torch.from_numpy(np.asarray(Strided(vector, "__array_interface__")))
mask = torch.zeros(1, 40, device=device)
mask[0, 0] = 1
if read_padding:
    mask[0, 1] = 1
pooled = masked_mean_pool(hidden, mask, normalize=True, backend="triton")
assert torch.equal(pooled.cpu(), torch.full((1, 16), 0.25)), pooled
"""


@pytest.mark.parametrize(
    "device",
    [
        pytest.param("cpu", marks=BACKENDS[1].marks),
        pytest.param("cuda", marks=pytest.mark.cuda),
    ],
)
def test_no_padded_position_is_read(device: str) -> None:
    """Padding that is mapped to no memory: reading it ends the process."""

    def run(what: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", READ_ONE_TOKEN, device, what]
        return subprocess.run(command, capture_output=True, text=True)

    tokens = run("tokens")
    assert tokens.returncode == 0, tokens.stderr
    assert run("padding").returncode != 0, "the test cannot tell: padding was readable"


@pytest.mark.cuda
@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_offsets_beyond_2_31_elements(backend: Backend) -> None:
    num_tokens, width = 2**20 + 5, 2048
    if torch.cuda.mem_get_info()[0] < 20 * 2**30:
        pytest.skip("needs 20 GiB of free GPU memory")
    hidden = torch.zeros(2, num_tokens, width, device="cuda", dtype=torch.bfloat16)
    tokens = torch.randn(7, width, device="cuda", dtype=torch.bfloat16)
    hidden[1, -7:] = tokens
    mask = torch.zeros(2, num_tokens, device="cuda", dtype=torch.bool)
    mask[1, -7:] = True
    function = partial(masked_mean_pool, mask=mask, backend=backend)
    pooled, grad = result_and_grad(function, hidden, torch.ones(2, width, device="cuda"))
    torch.testing.assert_close(pooled[1], tokens.float().mean(0).bfloat16())
    assert not pooled[0].any()
    assert grad[1, -7:].all() and grad.count_nonzero() == 7 * width
    bounds = torch.tensor([0, 2 * num_tokens - 7, 2 * num_tokens], device="cuda")
    packed = mean_pool_varlen(hidden.flatten(0, 1), bounds, backend=backend)
    assert torch.equal(packed[1], pooled[1])


@pytest.mark.cuda
@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_the_host_never_waits(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CROSSALIGN_CHECK", raising=False)
    hidden = torch.randn(2, 9, 8, device="cuda", requires_grad=True)
    mask, bounds = lengths_mask(9, 3)(9).cuda(), cumulative([9, 9]).cuda()

    def step() -> None:
        mean = masked_mean_pool(hidden, mask, normalize=True, backend=backend)
        packed = mean_pool_varlen(hidden.flatten(0, 1), bounds, backend=backend)
        others = pool(hidden, mask, "last") + pool(hidden, mask, "max")
        (mean + packed + others).sum().backward()

    step()  # compiles the kernels, which may wait
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


# Properties


@BOTH
@pytest.mark.parametrize("run", RUNS)
def test_two_runs_agree_bit_for_bit(run: Run, normalize: bool) -> None:
    # One token more than a program takes, so two splits.
    hidden = torch.randn(2, 513, 5).to(run.device, run.dtype)
    mask = lengths_mask(513, 33)(513).to(run.device)
    upstream = torch.randn(2, 5).to(hidden)
    bounds = cumulative([513, 513]).to(run.device)
    for function, inputs in (
        (partial(masked_mean_pool, mask=mask), hidden),
        (partial(mean_pool_varlen, cu_seqlens=bounds), hidden.flatten(0, 1)),
    ):
        function = partial(function, normalize=normalize, backend=run.backend)
        first, second = (result_and_grad(function, inputs, upstream) for _ in range(2))
        assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])


def test_weights_may_be_scaled() -> None:
    hidden, weights = torch.randn(2, 9, 5), torch.rand(2, 9)
    scaled = masked_mean_pool(hidden, weights * 1024)
    assert torch.equal(scaled, masked_mean_pool(hidden, weights))


def test_inputs_are_not_written() -> None:
    hidden, mask = torch.randn(2, 3, 4), torch.rand(2, 3)
    before = hidden.clone(), mask.clone()
    for name in ("mean", "last", "max"):
        pool(hidden, mask, name, normalize=True)
    mean_pool_varlen(hidden.flatten(0, 1), cumulative([2, 4]))
    assert torch.equal(hidden, before[0]) and torch.equal(mask, before[1])


def test_hidden_is_never_copied_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_passes, "CHUNK_ELEMENTS", 1000)
    hidden = torch.randn(2, 300, 40, dtype=torch.bfloat16)
    for mask in (torch.ones(2, 300), torch.rand(2, 300)):  # runs of ones, and any weights
        with LargestAllocation() as largest:
            ops._masked_mean_pool_fwd(hidden, mask, True, False)
        assert 0 < largest.elements <= 1000
    with LargestAllocation() as largest:
        ops._mean_pool_varlen_fwd(hidden.flatten(0, 1), cumulative([500, 100]), True, False)
    assert 0 < largest.elements <= 1000


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_runs_of_ones_give_what_any_mask_gives(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Padding left, right or on both sides, or nothing but padding; the last has a hole."""
    token = torch.arange(11)
    masks = torch.stack([token < 7, token > 3, (token > 2) & (token < 9), token < 0, token < 11])
    hidden = torch.randn(5, 11, 6).to(dtype)
    hidden[~masks] = torch.nan
    for mask, has_runs in ((masks, True), (masks & (token != 5), False)):
        assert (torch_passes._spans(mask.to(torch.float32)) is not None) == has_runs
        sums, weight_sum = torch_passes.masked_sums(hidden, mask)
        expected = torch.where(mask[..., None], hidden.double(), 0).sum(1)
        torch.testing.assert_close(sums.double(), expected, rtol=1e-5, atol=1e-5)
        assert torch.equal(weight_sum.double(), mask.sum(1).double())


def test_gradient_of_padding_is_zero_though_a_row_is_not_finite() -> None:
    mask = lengths_mask(3, 2)(3)
    rows = torch.tensor([[1.0, torch.inf], [2.0, 3.0]])
    for dtype in (torch.float32, torch.bfloat16):
        gradient = torch_passes.masked_gradient(rows, mask, dtype)
        assert torch.equal(gradient, torch.where(mask[..., None] != 0, rows[:, None], 0).to(dtype))


def test_autocast_changes_nothing() -> None:
    hidden, mask = torch.randn(2, 9, 5), lengths_mask(9, 4)(9)
    for name in ("mean", "last", "max"):
        expected = pool(hidden, mask, name, normalize=True)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(pool(hidden, mask, name, normalize=True), expected)
