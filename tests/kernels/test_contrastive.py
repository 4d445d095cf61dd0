"""The contrastive kernels alone: ways of loading, plans of programs, memory, what a GPU must do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from crossalign import ContrastiveLoss, fused_contrastive_loss
from crossalign.contrastive.problem import ContrastiveGrads, GradientNeeds
from tests.support.contrastive.loss_outcomes import upstream_of
from tests.support.contrastive_cases import (
    LOSS_CASES,
    SYMMETRIC,
    LossCase,
    fused,
    make_inputs,
    make_problem,
)
from tests.support.counted import LargestAllocation
from tests.support.pooling_cases import BACKENDS, INTERPRETED_DTYPES, Run

operands = pytest.importorskip("crossalign.kernels.operands", reason="needs triton")
tiles = pytest.importorskip("crossalign.kernels.tiles", reason="needs triton")
ONE = torch.tensor(1.0)
INTERPRETED = pytest.mark.parametrize("backend", BACKENDS[1:])


# Under the interpreter


@INTERPRETED
@pytest.mark.parametrize("dtype", INTERPRETED_DTYPES)
@pytest.mark.parametrize("name", ["beyond_the_tiles", "splits", "everything"])
def test_pointers_load_what_descriptors_load(
    name: str, dtype: torch.dtype, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Descriptors are for Hopper and later; the same tiles by pointers give the same bits."""
    case, run = LOSS_CASES[name], Run(backend, "cpu", dtype)
    inputs, upstream = make_inputs(case, run), upstream_of(case, run)
    results = []
    for use_descriptors in (True, False):
        monkeypatch.setattr(operands, "USE_DESCRIPTORS_INTERPRETED", use_descriptors)
        results.append(fused(inputs, backend, upstream))
    one, other = results
    assert torch.equal(one.loss, other.loss) and one.stats == other.stats
    for leaf, grad in one.grads.items():
        assert torch.equal(grad, other.grads[leaf]), leaf


@pytest.mark.parametrize("slots", [1, 2, 7, 132])
@pytest.mark.parametrize("row_blocks", [1, 2, 13, 512])
@pytest.mark.parametrize("column_blocks", [1, 3, 64, 1000])
def test_a_plan_covers_every_tile_once(row_blocks: int, column_blocks: int, slots: int) -> None:
    plan = tiles.plan_programs(row_blocks, column_blocks, slots, tiles.INTERPRETER_TILES)
    assert plan.groups * plan.splits <= slots
    assert (plan.groups - 1) * plan.blocks_per_group < row_blocks
    assert plan.groups * plan.blocks_per_group >= row_blocks
    assert plan.splits * plan.blocks_per_split >= column_blocks
    # At most twice the share that a perfect partition would give a program.
    share = -(-row_blocks * column_blocks // slots)
    assert plan.blocks_per_group * plan.blocks_per_split <= 2 * share


@pytest.mark.parametrize("row_blocks", [0, 3])
def test_a_plan_of_nothing_has_no_tiles(row_blocks: int) -> None:
    plan = tiles.plan_programs(row_blocks, 0 if row_blocks else 3, 8, tiles.INTERPRETER_TILES)
    assert plan.blocks_per_group * plan.blocks_per_split == 0


@INTERPRETED
def test_no_tensor_of_queries_times_columns(backend: str) -> None:
    from crossalign.kernels.contrastive_backward import contrastive_bwd
    from crossalign.kernels.contrastive_forward import contrastive_fwd
    from crossalign.kernels.gradient_products import CHUNK

    query, candidates = torch.randn(100, 4), torch.randn(150, 4)
    problem = make_problem(100, query.dtype)
    with LargestAllocation() as largest:
        sums = contrastive_fwd(query, candidates, problem, None, True)
        grads = [torch.ones_like(getattr(sums, name)) for name in ContrastiveGrads._fields]
        contrastive_bwd(query, candidates, problem, sums, ContrastiveGrads(*grads), GradientNeeds())
    assert 0 < largest.elements <= CHUNK * CHUNK < 100 * 150


@INTERPRETED
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tie_bounds_are_the_last_logits_that_round_to_the_own_one(
    backend: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a rank knows of an own logit is in natural units, and the kernel compares in log2's."""
    from crossalign.kernels import contrastive_logits, positive_logits

    monkeypatch.setattr(positive_logits, "tie_slack", lambda *_: torch.zeros(()))
    ln_2 = contrastive_logits.LN_2.value
    formed = torch.cat([torch.randn(10_000, dtype=dtype) * 30, torch.zeros(1, dtype=dtype)])
    positive_logit = formed * ln_2
    lower, upper = positive_logits.tie_bounds(
        formed, formed, make_problem(1, dtype), positive_logit, None
    )
    assert ((lower <= formed) & (formed <= upper)).all() and (lower < upper).any()
    assert torch.equal(lower * ln_2, positive_logit) and torch.equal(upper * ln_2, positive_logit)
    infinity = torch.tensor(torch.inf, dtype=dtype)
    assert (torch.nextafter(lower, -infinity) * ln_2 < positive_logit).all()
    assert (torch.nextafter(upper, infinity) * ln_2 > positive_logit).all()


# On a GPU


def cuda_rows(*sizes: int, dtype: torch.dtype = torch.bfloat16, width: int = 64) -> list[Tensor]:
    return [torch.randn(size, width, device="cuda").to(dtype).requires_grad_() for size in sizes]


def step(leaves: list[Tensor], **options: Any) -> list[Tensor]:
    loss = fused_contrastive_loss(*leaves, **options)
    return [loss.detach(), *torch.autograd.grad(loss.sum(), leaves)]


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_large_batch_equals_float64_on_sampled_rows(dtype: torch.dtype) -> None:
    """65,536 pairs: row terms and gradients of 64 queries against their logits in float64."""
    num_pairs, width, scale = 65_536, 128, 20.0
    query, key = cuda_rows(num_pairs, num_pairs, dtype=dtype, width=width)
    terms = fused_contrastive_loss(query, key, reduction="none")
    (grad,) = torch.autograd.grad(terms.sum(), query)
    rows = torch.randint(0, num_pairs, (64,), device="cuda")
    sampled = query.detach()[rows].double().requires_grad_()
    logits = scale * F.normalize(sampled, dim=1) @ F.normalize(key.detach().double(), dim=1).T
    expected = logits.logsumexp(1) - logits.gather(1, rows[:, None])[:, 0]
    (expected_grad,) = torch.autograd.grad(expected.sum(), sampled)
    torch.testing.assert_close(terms[rows].double(), expected, rtol=2e-5, atol=2e-5)
    error = (grad[rows].double() - expected_grad).abs().amax(1)
    eps = max(torch.finfo(dtype).eps, 1e-5)
    assert (error <= 4 * eps * expected_grad.abs().amax(1)).all()


@pytest.mark.cuda
@pytest.mark.parametrize("options", [{}, SYMMETRIC, {"temperature": 0.01}])
def test_both_backends_agree_on_a_gpu(options: dict[str, Any]) -> None:
    leaves = cuda_rows(1000, 1000, 333, dtype=torch.float32, width=100)
    triton, plain = (step(leaves, backend=backend, **options) for backend in ("triton", "torch"))
    for one, other in zip(triton, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6 * float(other.abs().max()))


@pytest.mark.cuda
def test_offsets_beyond_2_31_elements() -> None:
    """Rows whose element offsets need 64 bits, and more logits than 32 bits count."""
    num_candidates, width = 2**20 + 77, 2048
    if torch.cuda.mem_get_info()[0] < 32 * 2**30:
        pytest.skip("needs 32 GiB of free GPU memory")
    query, key = cuda_rows(4096, 4096, width=width)
    negatives = torch.zeros(num_candidates, width, device="cuda", dtype=torch.bfloat16)
    negatives[-5:] = query.detach()[:5]
    terms = fused_contrastive_loss(
        query, key, negatives, normalize=False, temperature=width / 8.0, reduction="none"
    )
    (grad,) = torch.autograd.grad(terms[:5].sum(), query)
    rows, far = query.detach()[:5].double(), negatives[-5:].double()
    near = torch.cat([key.detach().double(), far])
    logits = torch.cat([rows @ near.T * 8 / width, rows.new_zeros(5, num_candidates - 5)], 1)
    expected = logits.logsumexp(1) - logits.diagonal()
    torch.testing.assert_close(terms[:5].double(), expected, rtol=1e-5, atol=1e-5)
    weights = logits.softmax(1)[:, : len(near)]
    weights[:, :5] -= torch.eye(5, device="cuda", dtype=torch.float64)
    error = (grad[:5].double() - weights @ near * 8 / width).abs().max()
    assert error <= 0.01 * grad[:5].abs().max()
    assert not grad[5:].any()


@pytest.mark.cuda
def test_another_batch_size_compiles_nothing() -> None:
    from crossalign.kernels.contrastive_forward import _contrastive_fwd_kernel
    from crossalign.kernels.contrastive_gradient import _contrastive_bwd_kernel
    from crossalign.kernels.positive_logits import _positive_logits_kernel

    def compiled() -> int:
        kernels = (_contrastive_fwd_kernel, _contrastive_bwd_kernel, _positive_logits_kernel)
        return sum(len(kernel.device_caches[0][0]) for kernel in kernels)

    step(cuda_rows(64, 64, 64))
    before = compiled()
    assert before >= 3
    for size in (1, 2, 16, 100, 128, 129, 1000, 1024):
        step(cuda_rows(size, size, size + 1))
    assert compiled() == before


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_host_never_waits(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CROSSALIGN_CHECK", raising=False)
    case = LossCase(40, 30, 16, ("ids", "weights", "temperature", "negative_owner"), SYMMETRIC)
    inputs = make_inputs(case, Run("triton", "cuda", dtype))
    upstream = ONE.cuda()
    fused(inputs, "triton", upstream)  # compiles the kernels, which may wait
    torch.cuda.set_sync_debug_mode("error")
    try:
        for backend in ("triton", "torch"):
            fused(inputs, backend, upstream)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_cuda_graph_captures_the_step(dtype: torch.dtype) -> None:
    leaves = cuda_rows(256, 256, 100, dtype=dtype)
    module = ContrastiveLoss(learn_temperature=True, symmetric=True).cuda()

    def both() -> list[Tensor]:
        loss = module(*leaves)
        return [loss.detach(), *torch.autograd.grad(loss, [*leaves, *module.parameters()])]

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            both()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = both()
    with torch.no_grad():
        for leaf in leaves:
            leaf.copy_(torch.randn_like(leaf))
    graph.replay()
    for one, other in zip(captured, both(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.cuda
def test_memory_grows_with_rows_and_not_with_logits() -> None:
    leaves = cuda_rows(32_768, 32_768)
    step(leaves)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step(leaves)
    # One chunk of H in 16 bits is 128 MiB; the logits would be 4 GiB in float32.
    assert torch.cuda.max_memory_allocated() - before < 512 * 2**20


@pytest.mark.cuda
def test_a_second_gpu_gets_its_own_launches() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    leaves = [torch.randn(70, 32) for _ in range(3)]
    results = []
    for device in ("cuda:0", "cuda:1"):
        moved = [leaf.to(device).requires_grad_() for leaf in leaves]
        results.append([value.cpu() for value in step(moved, symmetric=True)])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))
