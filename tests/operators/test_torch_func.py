"""torch.func transforms the losses and the poolings as it does their dense references."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, hessian, jacrev, jvp, vjp, vmap

from crossalign import (
    ContrastiveLoss,
    fused_contrastive_loss,
    fused_sigmoid_loss,
    gather_negatives,
    masked_mean_pool,
    mean_pool_varlen,
    pool,
)
from crossalign.backends import Backend
from crossalign.pooling.choices import Pooling
from crossalign.reference import contrastive_loss, sigmoid_loss
from tests.support.pooling_cases import BACKENDS

IDS = torch.tensor([3, 1, 3, 0, 2])
OPTIONS: dict[str, dict[str, Any]] = {
    "one_way": {},
    "symmetric": {"symmetric": True},
    "masked": {"ids": IDS, "weights": torch.tensor([1.0, 2, 0, 1, 3])},
    "directions": {
        "directions": ("query_to_key", "query_to_query"),
        "false_negative_margin": 0.2,
        "label_smoothing": 0.1,
    },
}
MASK = torch.tensor([[1, 1, 0], [0, 0, 0], [1, 1, 1]])


def wide(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def losses(name: str, backend: Backend) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    """(the fused loss, the reference) of query, key and temperature."""
    options = OPTIONS[name]
    if "directions" in options:
        backend = "auto"  # further directions are chosen where they can run

    def fused(query: Tensor, key: Tensor, temperature: Tensor) -> Tensor:
        return fused_contrastive_loss(
            query, key, temperature=temperature, backend=backend, **options
        )

    def dense(query: Tensor, key: Tensor, temperature: Tensor) -> Tensor:
        return contrastive_loss(query, key, temperature=temperature, **options)[0]

    return fused, dense


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    return wide(5, 4), wide(5, 4), torch.tensor(0.3, dtype=torch.float64)


ARGUMENTS = (0, 1, 2)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", OPTIONS)
def test_contrastive_gradients(name: str, backend: Backend) -> None:
    (fused, dense), given = losses(name, backend), inputs()
    expected = grad(dense, ARGUMENTS)(*given)
    torch.testing.assert_close(grad(fused, ARGUMENTS)(*given), expected)
    torch.testing.assert_close(jacrev(fused, ARGUMENTS)(*given), expected)
    value, backward = vjp(fused, *given)  # type: ignore[misc]
    torch.testing.assert_close(value, dense(*given))
    halves = backward(torch.tensor(0.5, dtype=torch.float64))
    torch.testing.assert_close(halves, tuple(each / 2 for each in expected))


@pytest.mark.parametrize("backend", BACKENDS)
def test_sigmoid_gradients(backend: Backend) -> None:
    bias = torch.tensor(-0.4, dtype=torch.float64)

    def fused(query: Tensor, key: Tensor, temperature: Tensor, bias: Tensor) -> Tensor:
        options: dict[str, Any] = {"temperature": temperature, "bias": bias, "ids": IDS}
        return fused_sigmoid_loss(query, key, backend=backend, **options)

    def dense(query: Tensor, key: Tensor, temperature: Tensor, bias: Tensor) -> Tensor:
        return sigmoid_loss(query, key, temperature=temperature, bias=bias, ids=IDS)

    given = (*inputs(), bias)
    expected = grad(dense, (0, 1, 2, 3))(*given)
    torch.testing.assert_close(grad(fused, (0, 1, 2, 3))(*given), expected)
    torch.testing.assert_close(vjp(fused, *given)[1](torch.ones_like(bias)), expected)


def plain_mean(hidden: Tensor, mask: Tensor, normalize: bool) -> Tensor:
    weights = mask.to(hidden.dtype)
    mean = (hidden * weights[:, :, None]).sum(1) / weights.sum(1).clamp_min(1)[:, None]
    return nn.functional.normalize(mean, dim=1) if normalize else mean


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("normalize", [False, True])
def test_jacobian_of_the_padded_mean(normalize: bool, backend: Backend) -> None:
    """Its rows are mapped with vmap over the backward op."""
    hidden, mask = wide(2, 3, 4), MASK[[0, 2]]

    def fused(hidden: Tensor) -> Tensor:
        return masked_mean_pool(hidden, mask, normalize=normalize, backend=backend)

    def plain(hidden: Tensor) -> Tensor:
        return plain_mean(hidden, mask, normalize)

    torch.testing.assert_close(jacrev(fused)(hidden), jacrev(plain)(hidden))


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradient_of_the_packed_mean(backend: Backend) -> None:
    bounds, weights = torch.tensor([0, 2, 2, 5]), wide(3, 4)

    def total(hidden: Tensor) -> Tensor:
        return (weights * mean_pool_varlen(hidden, bounds, backend=backend)).sum()

    parts = [weights[:1] / 2, weights[:1] / 2, *[weights[2:] / 3] * 3]
    torch.testing.assert_close(grad(total)(wide(5, 4)), torch.cat(parts))


@pytest.mark.parametrize("mode", ["last", "max"])
def test_gradient_of_the_other_poolings(mode: Pooling) -> None:
    hidden = wide(3, 3, 4)
    (expected,) = torch.autograd.grad(
        pool(leaf := hidden.clone().requires_grad_(), MASK, mode).square().sum(), leaf
    )
    got = grad(lambda hidden: pool(hidden, MASK, mode).square().sum())(hidden)
    torch.testing.assert_close(got, expected)


def test_functional_call_of_an_encoder_and_a_learned_temperature() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.Linear(4, 3).double()
            self.loss = ContrastiveLoss(0.2, learn_temperature=True)

        def forward(self, query: Tensor, key: Tensor) -> Tensor:
            return self.loss(self.encoder(query), self.encoder(key))

    model, (query, key, _) = Model(), inputs()
    parameters = dict(model.named_parameters())
    model(query, key).backward()
    got = grad(lambda parameters: functional_call(model, parameters, (query, key)))(parameters)
    assert got.keys() == parameters.keys()
    for name, parameter in parameters.items():
        torch.testing.assert_close(got[name], parameter.grad, msg=name)


# vmap


@pytest.mark.parametrize("backend", BACKENDS)
def test_vmap_is_one_call_after_another(backend: Backend) -> None:
    """Over queries and temperatures, the keys being those of every call."""
    fused, dense = losses("symmetric", backend)
    queries, key, temperatures = wide(3, 5, 4), wide(5, 4), torch.rand(3, dtype=torch.float64) + 0.1
    each = (0, None, 0)
    expected = [dense(q, key, t) for q, t in zip(queries, temperatures, strict=True)]
    got = vmap(fused, in_dims=each)(queries, key, temperatures)
    torch.testing.assert_close(got, torch.stack(expected))
    by_example = vmap(grad(fused), in_dims=each)(queries, key, temperatures)
    pairs = zip(queries, temperatures, strict=True)
    expected = [grad(dense)(q, key, t) for q, t in pairs]
    torch.testing.assert_close(by_example, torch.stack(expected))


def test_gradient_through_vmap() -> None:
    """Whether a side needs a gradient shows only below the level of vmap."""
    fused, dense = losses("one_way", "torch")
    queries, (_, key, temperature) = wide(3, 5, 4), inputs()

    def total(loss: Callable[..., Tensor]) -> Callable[[Tensor], Tensor]:
        return lambda queries: vmap(lambda query: loss(query, key, temperature))(queries).sum()

    expected = torch.stack([grad(dense)(query, key, temperature) for query in queries])
    torch.testing.assert_close(grad(total(fused))(queries), expected)


def test_vmap_of_the_poolings() -> None:
    hidden = wide(2, 3, 3, 4)
    got = vmap(lambda hidden: masked_mean_pool(hidden, MASK))(hidden)
    torch.testing.assert_close(got, torch.stack([plain_mean(each, MASK, False) for each in hidden]))


def test_vmap_over_nothing_says_so() -> None:
    with pytest.raises(ValueError, match="crossalign::masked_mean_pool_fwd: vmap must map over"):
        vmap(lambda hidden: masked_mean_pool(hidden, MASK))(wide(0, 3, 3, 4))


# What is refused


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["one_way", "symmetric"])
def test_a_second_derivative_is_refused(name: str, backend: Backend) -> None:
    fused, given = losses(name, backend)[0], inputs()
    squared = grad(lambda *given: grad(fused)(*given).square().sum())
    with pytest.raises(RuntimeError, match="crossalign contrastive loss cannot be differentiated"):
        squared(*given)


def test_a_second_derivative_of_the_others_is_refused() -> None:
    query, key, temperature = inputs()

    def sigmoid(query: Tensor) -> Tensor:
        return fused_sigmoid_loss(query, key, temperature=temperature, bias=0.0)

    def mean(hidden: Tensor) -> Tensor:
        return masked_mean_pool(hidden, MASK).square().sum()

    with pytest.raises(RuntimeError, match="crossalign sigmoid loss cannot be differentiated"):
        grad(lambda query: grad(sigmoid)(query).square().sum())(query)
    with pytest.raises(RuntimeError, match="crossalign mean pooling cannot be differentiated"):
        grad(lambda hidden: grad(mean)(hidden).square().sum())(wide(3, 3, 4))


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")  # jvp of PyTorch itself
def test_forward_mode_is_refused() -> None:
    (fused, _), given = losses("symmetric", "torch"), inputs()
    for function in (lambda: jvp(fused, given, given), lambda: hessian(fused)(*given)):
        with pytest.raises(RuntimeError, match="crossalign::contrastive_fwd has no forward-mode"):
            function()


def test_a_group_is_refused() -> None:
    query, group = wide(5, 4), cast(Any, object())
    calls = {
        "fused_contrastive_loss": lambda x: fused_contrastive_loss(x, x, group=group),
        "fused_sigmoid_loss": lambda x: fused_sigmoid_loss(
            x, x, temperature=1, bias=0, group=group
        ),
        "gather_negatives": lambda x: gather_negatives(x, group).sum(),
    }
    for name, call in calls.items():
        with pytest.raises(RuntimeError, match=f"{name}: group must be None under the transforms"):
            grad(call)(query)


def test_values_are_checked_though_a_gradient_is_taken() -> None:
    def loss(query: Tensor) -> Tensor:
        return fused_contrastive_loss(query, query, weights=-torch.ones(5))

    with pytest.raises(ValueError, match="weights must be finite and not negative"):
        grad(loss)(wide(5, 4))
