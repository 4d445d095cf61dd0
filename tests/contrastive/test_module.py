"""ContrastiveLoss: its learned temperature, its options; copies of modules that have a group."""

from __future__ import annotations

import copy
import io
import math
import pickle
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from crossalign import ContrastiveLoss, NegativeQueue, fused_contrastive_loss
from crossalign.alignment import AlignmentModel
from tests.support.tiny_models import tiny_model


def grad_of(loss: Any, leaf: Tensor) -> Tensor:
    return torch.autograd.grad(loss, leaf)[0]


def test_module_learns_its_temperature_up_to_the_cap() -> None:
    module = ContrastiveLoss(0.1, learn_temperature=True, max_logit_scale=20.0)
    assert list(module.state_dict()) == ["logit_scale"]
    assert module.logit_scale.item() == pytest.approx(math.log(10.0))
    query, key = torch.randn(6, 4), torch.randn(6, 4)
    loss = module(query, key)
    torch.testing.assert_close(loss, fused_contrastive_loss(query, key, temperature=0.1))
    loss.backward()
    assert module.logit_scale.grad.abs() > 0
    module.logit_scale.data.fill_(math.log(1e6))
    torch.testing.assert_close(
        module(query, key), fused_contrastive_loss(query, key, temperature=1 / 20.0)
    )


def test_a_temperature_that_is_a_tensor_keeps_its_gradient_in_the_module() -> None:
    """It was turned into a number, and its gradient was lost without a word."""
    query, key = torch.randn(6, 4), torch.randn(6, 4)
    temperature = torch.tensor(0.2, requires_grad=True)
    assert not list(ContrastiveLoss(temperature).parameters())
    expected = grad_of(fused_contrastive_loss(query, key, temperature=temperature), temperature)
    assert torch.equal(grad_of(ContrastiveLoss(temperature)(query, key), temperature), expected)
    module = ContrastiveLoss(torch.nn.Parameter(temperature.detach()))
    assert torch.equal(grad_of(module(query, key), *module.parameters()), expected)
    learned = ContrastiveLoss(torch.nn.Parameter(temperature.detach()), learn_temperature=True)
    assert learned.logit_scale.item() == pytest.approx(math.log(1 / 0.2))
    assert len(list(learned.parameters())) == 1


def test_module_passes_its_options_on() -> None:
    module = ContrastiveLoss(symmetric=True, reduction="sum", return_stats=True)
    query, key, ids = torch.randn(5, 4), torch.randn(5, 4), torch.tensor([0, 0, 1, 2, 3])
    loss, stats = module(query, key, ids=ids)
    expected, expected_stats = fused_contrastive_loss(
        query, key, ids=ids, symmetric=True, reduction="sum", return_stats=True
    )
    assert torch.equal(loss, expected)
    assert stats == expected_stats


@pytest.mark.parametrize("temperature", [0.009, torch.tensor(0.009), np.float32(0.009)])
def test_a_learned_temperature_may_not_start_where_it_has_no_gradient(temperature: Any) -> None:
    """It ran at the bound, with a gradient of zero for ever."""
    message = (
        r"temperature=0\.00(9|89).* starts below 1 / max_logit_scale = 0\.01, where .* \(now 100"
    )
    with pytest.raises(ValueError, match=f"^ContrastiveLoss: {message}"):
        ContrastiveLoss(temperature, learn_temperature=True)
    with pytest.raises(ValueError, match=f"^AlignmentModel: {message}"):
        AlignmentModel(tiny_model("gpt2"), temperature=temperature, learn_temperature=True)
    assert ContrastiveLoss(temperature).temperature == temperature  # not learned, not bounded
    ContrastiveLoss(temperature, learn_temperature=True, max_logit_scale=120)


@pytest.mark.parametrize("largest", [3.0, 7.0, 10.0, 13.0, 33.0, 77.0, 100.0])
def test_a_temperature_that_starts_at_the_bound_learns(largest: float) -> None:
    """log(1 / temperature) is rounded to float32, and may not be rounded past the bound."""
    module = ContrastiveLoss(1 / largest, learn_temperature=True, max_logit_scale=largest)
    module(torch.randn(5, 4), torch.randn(5, 4)).backward()
    assert module.logit_scale.grad != 0


def test_temperature_and_repr_are_live() -> None:
    module = ContrastiveLoss(0.1, learn_temperature=True, symmetric=True)
    assert module.temperature == pytest.approx(0.1)
    module.logit_scale.data.fill_(math.log(4.0))
    assert module.temperature == pytest.approx(0.25) and isinstance(module.temperature, float)
    assert repr(module) == (
        f"ContrastiveLoss(temperature={module.temperature}, learn_temperature=True, symmetric=True)"
    )
    module.logit_scale.data.fill_(9.0)  # past the bound: what is used is told
    assert module.temperature == pytest.approx(0.01)


@pytest.mark.parametrize("cast", ["bfloat16", "half", "to", "parent"])
def test_16_bits_leave_the_logit_scale_in_float32(cast: str) -> None:
    """In bfloat16 a step of 1e-4 is below the spacing of numbers near log(20)."""
    module = ContrastiveLoss(learn_temperature=True)
    parameter = module.logit_scale
    if cast == "to":
        module.to(torch.bfloat16)
    elif cast == "parent":
        parent = nn.Sequential(nn.Linear(2, 2), module).bfloat16()
        assert parent[0].weight.dtype == torch.bfloat16
    else:
        getattr(module, cast)()
    assert module.logit_scale is parameter and parameter.dtype == torch.float32
    before = parameter.item()
    optimizer = torch.optim.SGD(module.parameters(), lr=1e-4)
    query, key = torch.randn(2, 6, 4).bfloat16()
    module(query, key).backward()
    assert parameter.grad.dtype == torch.float32
    optimizer.step()
    assert 0 < abs(parameter.item() - before) < 0.01
    module.bfloat16()
    assert parameter.grad.dtype == torch.float32
    assert module.double().logit_scale.dtype == torch.float64


def test_a_module_on_the_meta_device_waits_for_its_weights() -> None:
    with torch.device("meta"):
        module = ContrastiveLoss(0.1, learn_temperature=True)
    assert "learn_temperature=True" in repr(module)
    module.to_empty(device="cpu").load_state_dict(
        ContrastiveLoss(0.2, learn_temperature=True).state_dict()
    )
    assert module.temperature == pytest.approx(0.2)


@pytest.fixture
def group() -> Iterator[Any]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()


def modules_of(group: Any) -> list[nn.Module]:
    queue = NegativeQueue(4, group=group)
    queue.push(torch.randn(3, 2))
    loss = ContrastiveLoss(0.1, learn_temperature=True, group=group)
    return [loss, queue, AlignmentModel(tiny_model("gpt2"), group=group)]


def test_deep_copies_share_the_group(group: Any) -> None:
    for module in modules_of(group):
        copied = copy.deepcopy(nn.Sequential(module))[0]
        assert copied.group is group
        pairs = zip(module.state_dict().items(), copied.state_dict().items(), strict=True)
        for (name, mine), (_, theirs) in pairs:
            assert torch.equal(mine, theirs) and mine is not theirs, name


def test_pickles_leave_the_group_out_and_say_so(group: Any) -> None:
    for module in modules_of(group):
        saved = io.BytesIO()
        torch.save(nn.Sequential(module), saved)
        saved.seek(0)
        message = f"{type(module).__name__}: its process group was not saved"
        with pytest.warns(UserWarning, match=message):
            loaded = [pickle.loads(pickle.dumps(module))]
        with pytest.warns(UserWarning, match=message):
            loaded += torch.load(saved, weights_only=False)
        for each in loaded:
            assert each.group is None
            assert all(map(torch.equal, each.state_dict().values(), module.state_dict().values()))
        assert module.group is group
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            pickle.loads(pickle.dumps(loaded[0]))


def test_a_loaded_loss_works_in_one_process(group: Any) -> None:
    with pytest.warns(UserWarning, match="set .group to spread batches over ranks again"):
        loaded = pickle.loads(pickle.dumps(ContrastiveLoss(group=group, gather="all_gather")))
    query, key = torch.randn(2, 5, 4)
    expected = fused_contrastive_loss(query, key)
    torch.testing.assert_close(loaded(query, key), expected)
    loaded.group = group
    torch.testing.assert_close(loaded(query, key), expected)
