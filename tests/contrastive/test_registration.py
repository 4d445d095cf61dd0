"""The contrastive ops as PyTorch sees them: gradcheck, opcheck, torch.compile."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

from crossalign import ContrastiveLoss, fused_contrastive_loss
from crossalign.contrastive.ops import contrastive_sums
from crossalign.contrastive.problem import ContrastiveGrads, ContrastiveProblem, ContrastiveSums
from crossalign.contrastive.row_loss import row_loss
from crossalign.contrastive.terms import TermRules
from tests.support.pooling_cases import BACKENDS

OPTIONS: dict[str, dict[str, Any]] = {
    "one_way": {},
    "symmetric": {"symmetric": True},
    "online": {"symmetric": True, "bound": None},
    "raw_masked": {"normalize": False, "bound": None, "with_ids": True, "with_owner": True},
    "positives": {"symmetric": True, "with_ids": True, "multi_positive": True},
    "unshared": {"with_owner": True, "share_negatives": False, "with_ids": True},
}


def make_problem(options: dict[str, Any], num_negatives: int, scale: Tensor) -> ContrastiveProblem:
    options = dict(options)
    ids = torch.tensor([7, 2, 7, 0, 1]) if options.pop("with_ids", False) else None
    owner = torch.tensor([4, 0, 0]) if options.pop("with_owner", False) else None
    return ContrastiveProblem(
        scale=scale,
        query_ids=ids,
        candidate_ids=None if ids is None else torch.cat([ids, torch.tensor([2, 9, 7])]),
        negative_owner=owner,
        num_keys=5,
        label_offset=0,
        hard_negative_weight=0.4 if owner is not None else 0.0,
        **{
            "share_negatives": True,
            "multi_positive": False,
            "symmetric": False,
            "normalize": True,
            "bound": 6.0,
            **options,
        },
    )


def make_leaves() -> tuple[Tensor, Tensor, Tensor]:
    query, candidates = (torch.randn(n, 4, dtype=torch.float64) for n in (5, 8))
    scale = torch.tensor(3.0, dtype=torch.float64)
    return query.requires_grad_(), candidates.requires_grad_(), scale.requires_grad_()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("needs", [(0,), (1,), (2,), (0, 1, 2)], ids=["q", "k", "s", "all"])
@pytest.mark.parametrize("name", OPTIONS)
def test_gradcheck_of_the_forward_op(name: str, needs: tuple[int, ...], backend: str) -> None:
    leaves = make_leaves()

    def sums(*given: Tensor) -> tuple[Tensor, ...]:
        query, candidates, scale = (
            given[needs.index(i)] if i in needs else leaf.detach() for i, leaf in enumerate(leaves)
        )
        problem = make_problem(OPTIONS[name], 3, scale)
        result = contrastive_sums(
            query, candidates[:3], problem, negatives=candidates[3:], use_triton=backend == "triton"
        )
        return tuple(getattr(result, field) for field in ContrastiveGrads._fields)

    # The interpreter takes seconds for every element's own difference quotient.
    fast = backend == "triton"
    assert torch.autograd.gradcheck(sums, [leaves[i] for i in needs], fast_mode=fast)


@pytest.mark.filterwarnings("default:The .grad attribute")  # of PyTorch 2.15's opcheck itself
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("transposed", [False, True], ids=["rows", "transposed"])
@pytest.mark.parametrize(
    ("name", "with_negatives"), [("symmetric", True), ("positives", False), ("raw_masked", True)]
)
def test_opcheck(name: str, with_negatives: bool, transposed: bool, backend: str) -> None:
    query, candidates, scale = make_leaves()
    if transposed:
        query, candidates = (
            x.detach().T.contiguous().T.requires_grad_() for x in (query, candidates)
        )
    problem, use_triton = make_problem(OPTIONS[name], 3, scale), backend == "triton"
    forward = torch.ops.crossalign.contrastive_fwd.default
    sides = (query, candidates[:3], candidates[3:]) if with_negatives else (query, candidates, None)
    torch.library.opcheck(forward, (*sides, *problem, None, True, use_triton))
    plain = [None if side is None else side.detach() for side in sides]
    detached = problem._replace(scale=scale.detach())
    sums = ContrastiveSums(*forward(*plain, *detached, None, False, use_triton))
    grads = [torch.randn_like(getattr(sums, field)) for field in ContrastiveGrads._fields]
    for needs in ((True, True, with_negatives, True), (True, False, False, False)):
        arguments = (*plain, *detached, *sums, *grads, *needs, use_triton)
        torch.library.opcheck(torch.ops.crossalign.contrastive_bwd.default, arguments)


ROW_LOSSES = [name for name in OPTIONS if not OPTIONS[name].get("symmetric")]


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("name", [*ROW_LOSSES, "positives"])
def test_gradcheck_of_the_row_loss(name: str, reduction: str) -> None:
    options, weights = {**OPTIONS[name], "symmetric": False}, torch.tensor([1.0, 0.5, 0.0, 2.0, 3])

    def loss(query: Tensor, candidates: Tensor, scale: Tensor) -> Tensor:
        problem = make_problem(options, 3, scale)
        sides = (query, candidates[:3], candidates[3:])
        return row_loss(*sides, problem, TermRules(), weights, reduction, with_stats=False)[0]

    assert torch.autograd.gradcheck(loss, make_leaves())


@pytest.mark.filterwarnings("default:The .grad attribute")  # of PyTorch 2.15's opcheck itself
@pytest.mark.parametrize("transposed", [False, True], ids=["rows", "transposed"])
@pytest.mark.parametrize("name", ROW_LOSSES)
def test_opcheck_of_the_row_loss(name: str, transposed: bool) -> None:
    query, candidates, scale = make_leaves()
    if transposed:
        query, candidates = (
            x.detach().T.contiguous().T.requires_grad_() for x in (query, candidates)
        )
    rules = (0.0, None, True)
    weights = torch.rand(5)
    forward = torch.ops.crossalign.row_loss_fwd.default
    sides = (query, candidates[:3], candidates[3:])
    for needs in ((True, True, True, True), (False, True, False, False)):
        # What is not needed may not require a gradient, as row_loss itself asks.
        *given, given_scale = (
            leaf if is_needed else leaf.detach()
            for leaf, is_needed in zip((*sides, scale), needs, strict=True)
        )
        problem = make_problem(OPTIONS[name], 3, given_scale)
        arguments = (*problem, weights, "mean", *rules, True)
        torch.library.opcheck(forward, (*given, *arguments, *needs))
    plain = [leaf.detach() for leaf in (*sides, scale)]
    gradients = [torch.randn_like(leaf) for leaf in plain]
    upstream = torch.tensor(0.3, dtype=torch.float64)
    backward = torch.ops.crossalign.row_loss_bwd.default
    torch.library.opcheck(backward, (upstream, *plain, *gradients))


def test_every_op_of_the_namespace_has_been_checked() -> None:
    import crossalign.contrastive.sigmoid.ops
    import crossalign.pooling.ops  # noqa: F401

    registered = {
        schema.name.split("::")[1]
        for schema in torch._C._jit_get_all_schemas()
        if schema.name.startswith("crossalign::")
    }
    # The pooling ops have their opcheck cases in pooling/test_ops.py, the sigmoid loss in sigmoid/.
    pooling = {
        f"{op}_{way}" for op in ("masked_mean_pool", "mean_pool_varlen") for way in ("fwd", "bwd")
    }
    passes = {
        f"{op}_{way}" for op in ("contrastive", "row_loss", "sigmoid") for way in ("fwd", "bwd")
    }
    assert registered == pooling | passes


def test_gradcheck_of_the_public_function() -> None:
    query, key, negatives = (torch.randn(n, 3, dtype=torch.float64) for n in (4, 4, 2))
    temperature = torch.tensor(0.4, dtype=torch.float64)
    leaves = [tensor.requires_grad_() for tensor in (query, key, negatives, temperature)]

    def loss(query: Tensor, key: Tensor, negatives: Tensor, temperature: Tensor) -> Tensor:
        weights = torch.tensor([1.0, 0.5, 0.0, 2.0])
        return fused_contrastive_loss(
            query, key, negatives, temperature=temperature, symmetric=True, weights=weights
        )

    assert torch.autograd.gradcheck(loss, leaves)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_second_backward_raises(backend: str) -> None:
    query, key = torch.randn(4, 3, requires_grad=True), torch.randn(4, 3)
    loss = fused_contrastive_loss(query, key, backend=backend)
    (gradient,) = torch.autograd.grad(loss, query, create_graph=True)
    with pytest.raises(RuntimeError, match="cannot be differentiated twice"):
        gradient.square().sum().backward()


def grad_of(loss: Any, leaf: Tensor) -> Tensor:
    return torch.autograd.grad(loss, leaf)[0]


@pytest.mark.parametrize("dynamic", [None, True], ids=["as_it_comes", "dynamic"])
def test_compiles_whole_with_any_batch_size(dynamic: bool | None) -> None:
    torch.compiler.reset()
    dynamo = torch._dynamo.utils.counters
    dynamo.clear()
    function = partial(fused_contrastive_loss, symmetric=True, return_stats=True)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for size in range(3, 53, 7 if dynamic else 1):
        query, key = torch.randn(size, 6, requires_grad=True), torch.randn(size, 6)
        loss, stats = compiled(query, key, ids=torch.arange(size) // 2)
        expected, expected_stats = function(query, key, ids=torch.arange(size) // 2)
        assert torch.equal(loss, expected)
        assert stats == expected_stats
        assert torch.equal(grad_of(loss, query), grad_of(expected, query))
    assert dynamo["stats"]["unique_graphs"] <= 2


@pytest.mark.parametrize("backend", BACKENDS)
def test_compiles_with_every_tensor_option(backend: str) -> None:
    torch.compiler.reset()
    query, key, negatives = (torch.randn(n, 4, requires_grad=True) for n in (5, 5, 3))
    options: dict[str, Any] = {
        "temperature": torch.tensor(0.1, requires_grad=True),
        "negative_owner": torch.tensor([4, 0, 0]),
        "hard_negative_weight": 0.3,
        "share_negatives": False,
        "weights": torch.rand(5),
        "reduction": "none",
        "backend": backend,
    }
    compiled = torch.compile(fused_contrastive_loss, fullgraph=True, backend="aot_eager")
    results = []
    for function in (compiled, fused_contrastive_loss):
        loss = function(query, key, negatives, **options)
        leaves = (query, key, negatives, options["temperature"])
        results.append((loss, *torch.autograd.grad(loss.sum(), leaves)))
    for got, expected in zip(*results, strict=True):
        # With Triton, eager calls have a kernel for the terms that the compiler sees in PyTorch.
        limit = 1e-6 if backend == "triton" else 0.0
        torch.testing.assert_close(got, expected, rtol=limit, atol=limit)


@pytest.mark.parametrize("symmetric", [False, True])
def test_fake_tensors_tell_shapes(symmetric: bool) -> None:
    """Tools that count memory or operations run models on tensors without data."""
    with FakeTensorMode():
        query, key = (torch.randn(5, 4, requires_grad=True) for _ in range(2))
        options = {"symmetric": symmetric, "ids": torch.arange(5), "weights": torch.ones(5)}
        loss, stats = fused_contrastive_loss(query, key, return_stats=True, **options)
        grads = torch.autograd.grad(loss, (query, key))
    assert loss.shape == stats.accuracy.shape == () and [x.shape for x in grads] == [(5, 4)] * 2


def test_one_pair_compiles() -> None:
    """The warning for it is given only in eager mode: a warning would break the graph."""
    torch.compiler.reset()
    compiled = torch.compile(fused_contrastive_loss, fullgraph=True, backend="aot_eager")
    assert compiled(torch.randn(1, 4), torch.randn(1, 4)).item() == 0


def test_learning_module_compiles() -> None:
    torch.compiler.reset()
    module = ContrastiveLoss(learn_temperature=True)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    for size in (4, 5, 9):
        query, key = torch.randn(size, 3), torch.randn(size, 3)
        loss, expected = compiled(query, key), module(query, key)
        # Compiled, the op does what the eager call does at once, in another order.
        torch.testing.assert_close(loss, expected)
        (scale,) = module.parameters()
        torch.testing.assert_close(grad_of(loss, scale), grad_of(expected, scale))
