"""Reports of users of other projects about losses: transforms, dtypes, groups, copies."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from crossalign import ContrastiveLoss, NegativeQueue, fused_contrastive_loss
from crossalign.alignment.config import TrainingConfig
from crossalign.alignment.engines.combinations import check_combination


def inputs() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(5, 4, generator=generator) for _ in range(2))
    return query, key


def plain_gradient(query: Tensor, key: Tensor) -> Tensor:
    """Of the query, from the loss in plain PyTorch."""
    query = query.clone().requires_grad_()
    units = [torch.nn.functional.normalize(x, dim=1) for x in (query, key)]
    loss = torch.nn.functional.cross_entropy(units[0] @ units[1].T / 0.05, torch.arange(5))
    return torch.autograd.grad(loss, query)[0]


def test_a_gradient_by_torch_func_is_that_of_backward() -> None:
    """Kind: transforms. Source: Liger-Kernel#1184."""
    query, key = inputs()
    got = torch.func.grad(lambda x: fused_contrastive_loss(x, key))(query)
    torch.testing.assert_close(got, plain_gradient(query, key))


def test_a_compiled_loss_has_its_gradient_and_a_compiled_transform_of_it_is_refused() -> None:
    """Kind: transforms of an autograd function under torch.compile. Source: pytorch#129845.

    PyTorch cannot trace such a transform; what counts is that no wrong number comes of it.
    """
    query, key = inputs()
    compiled = torch.compile(fused_contrastive_loss, backend="aot_eager", fullgraph=True)
    leaf = query.clone().requires_grad_()
    (got,) = torch.autograd.grad(compiled(leaf, key), leaf)
    torch.testing.assert_close(got, plain_gradient(query, key))

    @torch.compile(backend="eager")
    def gradient(x: Tensor) -> Tensor:
        return torch.func.grad(lambda y: fused_contrastive_loss(y, key))(x)

    with pytest.raises(RuntimeError, match=r"autograd.Function with functorch transforms"):
        gradient(query)


def test_two_dtypes_are_refused_and_float32_stays_under_autocast() -> None:
    """Kind: autocast. Source: Liger-Kernel#305."""
    query, key = inputs()
    with pytest.raises(ValueError, match=r"torch.float32.*torch.bfloat16"):
        fused_contrastive_loss(query, key.bfloat16())
    expected = fused_contrastive_loss(query, key)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(fused_contrastive_loss(query, key), expected)


def test_a_learned_temperature_under_fsdp_is_refused_by_name() -> None:
    """Kind: scalar parameters. Source: pytorch#132934, raylight#5."""
    config = TrainingConfig(learn_temperature=True)
    with pytest.raises(ValueError, match="learn_temperature does not go with FSDP2"):
        check_combination(config, "fsdp2", "cpu")


def test_modules_with_a_group_can_be_copied_pickled_and_saved() -> None:
    """Kind: deepcopy, as for a moving average of weights. Source: pytorch#76927, Tutel#177."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        query, key = inputs()
        loss = ContrastiveLoss(learn_temperature=True, group=dist.group.WORLD)
        assert torch.equal(copy.deepcopy(loss)(query, key), loss(query, key))
        queue = NegativeQueue(3, group=dist.group.WORLD)
        queue.push(key)
        assert torch.equal(copy.deepcopy(queue).keys, queue.keys)
        stored = io.BytesIO()
        torch.save(loss, stored)
        stored.seek(0)
        for read in (lambda: pickle.loads(pickle.dumps(loss)),
                     lambda: torch.load(stored, weights_only=False)):  # fmt: skip
            with pytest.warns(UserWarning, match="its process group was not saved"):
                again = read()
            assert torch.equal(again(query, key), loss(query, key)) and again.group is None
    finally:
        dist.destroy_process_group()
