"""ClipLoss and SigLipLoss against OpenCLIP's own, on one process and on two."""

from __future__ import annotations

import inspect
import warnings
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from tests.support.hosts import load_drop_in
from tests.support.process_group import run_ranks

ROWS = 6


def features(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    made = torch.randn(ROWS, 8, dtype=torch.float64, generator=generator)
    return F.normalize(made, dim=1)


def inputs(rows: slice = slice(None)) -> list[Tensor]:
    """Images, texts, logit scale and bias."""
    images, texts = features(1)[rows].requires_grad_(), features(2)[rows].requires_grad_()
    scale = torch.tensor(7.0, dtype=torch.float64, requires_grad=True)
    bias = torch.tensor(-3.0, dtype=torch.float64, requires_grad=True)
    return [images, texts, scale, bias]


def run(loss: Any, given: list[Tensor], **options: Any) -> tuple[Tensor, list[Tensor | None]]:
    value = loss(*given, **options)
    value = value["contrastive_loss"] if options.get("output_dict") else value
    return value.detach(), list(torch.autograd.grad(value, given, allow_unused=True))


@pytest.mark.parametrize("name", ["ClipLoss", "SigLipLoss"])
@pytest.mark.parametrize("output_dict", [False, True])
def test_equals_the_host(name: str, output_dict: bool) -> None:
    ours = getattr(load_drop_in("open_clip"), name)
    host = ours.__mro__[1]
    assert host.__module__ == "open_clip.loss" and host.__name__ == name
    assert inspect.signature(ours) == inspect.signature(host)
    given = inputs()
    value, gradients = run(ours(), given, output_dict=output_dict)
    expected, theirs = run(host(), given, output_dict=output_dict)
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(gradients, theirs, rtol=1e-10, atol=1e-12)


def test_scales_of_other_forms() -> None:
    """A float, a parameter of shape (1,); no bias, a number for one."""
    module = load_drop_in("open_clip")
    for name in ("ClipLoss", "SigLipLoss"):
        ours = getattr(module, name)
        for scale in (7.0, torch.tensor([7.0], dtype=torch.float64, requires_grad=True)):
            for bias in (None, -3.0):
                given = (*inputs()[:2], scale, bias)
                expected = ours.__mro__[1]()(*given)
                torch.testing.assert_close(
                    ours()(*given).reshape(()), expected.reshape(()), rtol=1e-12, atol=0
                )


def test_horovod_is_refused_when_the_loss_is_made() -> None:
    ours = load_drop_in("open_clip").ClipLoss
    with pytest.raises(ValueError, match=r"ClipLoss: use_horovod must be False, got True; use"):
        ours(use_horovod=True)


def test_more_ranks_than_there_are_raise() -> None:
    ours = load_drop_in("open_clip").ClipLoss
    with pytest.raises(RuntimeError, match=r"world_size must be that .* \(1\), got 2; call"):
        ours(world_size=2)(*inputs()[:3])


SETTINGS: list[dict[str, Any]] = [
    {"local_loss": True, "gather_with_grad": True},
    {"local_loss": False, "gather_with_grad": True},
    {"local_loss": False, "gather_with_grad": False},
]


def _losses_of_rank(rank: int, even: bool) -> list[Any]:
    module = load_drop_in("open_clip")
    rows = slice(3 * rank, 3 * rank + 3) if even else (slice(0, 4), slice(4, ROWS))[rank]
    found = []
    for settings in [*SETTINGS, {}]:
        loss = (module.ClipLoss if settings else module.SigLipLoss)(
            rank=rank, world_size=2, **settings
        )
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            found.append((*run(loss, inputs(rows)), [str(each.message) for each in told]))
    group = dist.get_world_size()
    return [group, found]


@pytest.mark.parametrize("even", [True, False])
def test_two_ranks_have_the_gradient_of_the_whole_batch(even: bool) -> None:
    """Averaged over ranks, as DistributedDataParallel does with what the features came from."""
    module = load_drop_in("open_clip")
    ranks = run_ranks(_losses_of_rank, 2, even)
    for index, settings in enumerate([*SETTINGS, {}]):
        host = (module.ClipLoss if settings else module.SigLipLoss).__mro__[1]
        expected, theirs = run(host(), inputs())
        of_rank = [found[index] for _, found in ranks]
        mean = sum(value for value, _, _ in of_rank) / 2
        torch.testing.assert_close(mean, expected, rtol=1e-12, atol=0)
        if settings and not settings["local_loss"]:
            torch.testing.assert_close(of_rank[0][0], expected, rtol=1e-12, atol=0)
        for argument in range(2):
            rows = torch.cat([gradients[argument] for _, gradients, _ in of_rank]) / 2
            torch.testing.assert_close(rows, theirs[argument], rtol=1e-10, atol=1e-12)
        for argument in (2, 3):
            average = sum(gradients[argument] for _, gradients, _ in of_rank) / 2
            torch.testing.assert_close(average, theirs[argument], rtol=1e-10, atol=1e-12)
        for _, _, told in of_rank:
            is_told = any("gather_with_grad=False are smaller" in each for each in told)
            assert is_told == (settings == SETTINGS[2])
