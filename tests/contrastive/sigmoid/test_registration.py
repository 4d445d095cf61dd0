"""The sigmoid ops as PyTorch sees them: gradcheck, opcheck, torch.compile, fake tensors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

from crossalign import fused_sigmoid_loss
from crossalign.backends import Backend
from crossalign.contrastive.sigmoid.ops import sigmoid_sums
from crossalign.contrastive.sigmoid.problem import SigmoidProblem
from tests.support.pooling_cases import BACKENDS

IDS = torch.tensor([7, 2, 7, 0, 1])
# Five queries against seven keys, of which the first is another rank's: query i's own is i + 1.
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "raw": {"normalize": False},
    "ids": {"query_ids": IDS, "key_ids": torch.tensor([2, 7, 2, 7, 0, 1, 9])},
}


def make_problem(options: dict[str, Any], scale: Tensor, bias: Tensor) -> SigmoidProblem:
    plain = {"query_ids": None, "key_ids": None, "label_offset": 1, "normalize": True}
    return SigmoidProblem(scale=scale, bias=bias, **plain | options)


def make_leaves() -> list[Tensor]:
    rows = [torch.randn(n, 4, dtype=torch.float64) for n in (5, 7)]
    scalars = [torch.tensor(value, dtype=torch.float64) for value in (3.0, -1.5)]
    return [leaf.requires_grad_() for leaf in (*rows, *scalars)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("needs", [(0,), (1,), (2,), (3,), (0, 1, 2, 3)])
@pytest.mark.parametrize("name", OPTIONS)
def test_gradcheck_of_the_forward_op(name: str, needs: tuple[int, ...], backend: str) -> None:
    leaves = make_leaves()

    def terms(*given: Tensor) -> Tensor:
        query, key, scale, bias = (
            given[needs.index(i)] if i in needs else leaf.detach() for i, leaf in enumerate(leaves)
        )
        problem = make_problem(OPTIONS[name], scale, bias)
        return sigmoid_sums(query, key, problem, use_triton=backend == "triton").terms

    # The interpreter takes seconds for every element's own difference quotient.
    fast = backend == "triton"
    assert torch.autograd.gradcheck(terms, [leaves[i] for i in needs], fast_mode=fast)


def test_gradcheck_of_the_public_function() -> None:
    query, key = (torch.randn(4, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    temperature, bias = (
        torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (0.4, -2.0)
    )
    weights = torch.tensor([1.0, 0.5, 0.0, 2.0])

    def loss(query: Tensor, key: Tensor, temperature: Tensor, bias: Tensor) -> Tensor:
        return fused_sigmoid_loss(query, key, temperature=temperature, bias=bias, weights=weights)

    assert torch.autograd.gradcheck(loss, (query, key, temperature, bias))


@pytest.mark.filterwarnings("default:The .grad attribute")  # of PyTorch 2.15's opcheck itself
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("transposed", [False, True], ids=["rows", "transposed"])
@pytest.mark.parametrize("name", OPTIONS)
def test_opcheck(name: str, transposed: bool, backend: str) -> None:
    query, key, scale, bias = make_leaves()
    if transposed:
        query, key = (x.detach().T.contiguous().T.requires_grad_() for x in (query, key))
    problem, use_triton = make_problem(OPTIONS[name], scale, bias), backend == "triton"
    forward = torch.ops.crossalign.sigmoid_fwd.default
    torch.library.opcheck(forward, (query, key, *problem, use_triton))
    plain = [leaf.detach() for leaf in (query, key, scale, bias)]
    detached = problem._replace(scale=plain[2], bias=plain[3])
    with torch.no_grad():
        terms, *norms = forward(*plain[:2], *detached, use_triton)
    upstream = torch.rand_like(terms)
    for needs in ((True, True, True), (False, True, False), (True, False, False)):
        arguments = (*plain[:2], *detached, *norms, upstream, *needs, use_triton)
        torch.library.opcheck(torch.ops.crossalign.sigmoid_bwd.default, arguments)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_second_backward_raises(backend: Backend) -> None:
    query, key = torch.randn(4, 3, requires_grad=True), torch.randn(4, 3)
    loss = fused_sigmoid_loss(query, key, temperature=0.1, bias=-1.0, backend=backend)
    (gradient,) = torch.autograd.grad(loss, query, create_graph=True)
    with pytest.raises(RuntimeError, match="sigmoid loss cannot be differentiated twice"):
        gradient.square().sum().backward()


def test_compiles_whole_with_any_batch_size() -> None:
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(fused_sigmoid_loss, fullgraph=True, backend="aot_eager")
    scalars: dict[str, Any] = {"temperature": torch.tensor(0.2, requires_grad=True), "bias": -2.0}
    for size in range(3, 24, 4):
        query, key = torch.randn(size, 6, requires_grad=True), torch.randn(size, 6)
        options = scalars | {"ids": torch.arange(size) // 2}
        loss, expected = (f(query, key, **options) for f in (compiled, fused_sigmoid_loss))
        assert torch.equal(loss, expected)
        leaves = (query, scalars["temperature"])
        for one, other in zip(
            torch.autograd.grad(loss, leaves), torch.autograd.grad(expected, leaves), strict=True
        ):
            assert torch.equal(one, other)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 2


def test_fake_tensors_tell_shapes() -> None:
    with FakeTensorMode():
        query, key = (torch.randn(5, 4, requires_grad=True) for _ in range(2))
        loss = fused_sigmoid_loss(query, key, temperature=0.1, bias=0.0, ids=torch.arange(5))
        grads = torch.autograd.grad(loss, (query, key))
    assert loss.shape == () and [x.shape for x in grads] == [(5, 4)] * 2


def test_autocast_changes_nothing() -> None:
    query, key = torch.randn(6, 40), torch.randn(6, 40)
    expected = fused_sigmoid_loss(query, key, temperature=0.1, bias=-1.0)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(fused_sigmoid_loss(query, key, temperature=0.1, bias=-1.0), expected)
