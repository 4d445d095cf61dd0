"""The next-token loss through liger-kernel: when it is taken, and that it is the plain loss."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from crossalign.models.fused_cross_entropy import can_fuse
from crossalign.models.next_token_loss import language_model_loss


def test_cpu_tensors_take_the_block_walk() -> None:
    assert not can_fuse(torch.randn(3, 4, requires_grad=True), scale=1.0)


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("softcap", [None, 5.0])
def test_liger_equals_the_plain_loss_and_gradients(
    dtype: torch.dtype, softcap: float | None
) -> None:
    pytest.importorskip("liger_kernel", reason="needs liger-kernel")
    # The library waits for the device and is not written for the deterministic mode's checks.
    torch.use_deterministic_algorithms(False)
    hidden = torch.randn(2, 33, 64, device="cuda", dtype=dtype, requires_grad=True)
    weight = torch.randn(515, 64, device="cuda").div(8).to(dtype).requires_grad_()
    labels = torch.randint(0, 515, (2, 33))
    labels[torch.rand(2, 33) < 0.3] = -100
    assert can_fuse(hidden.flatten(0, 1), scale=1.0)
    loss = language_model_loss(hidden, weight, labels, softcap=softcap)
    logits = F.linear(hidden[:, :-1].double(), weight.double())
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    truth = F.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten().cuda())
    # Its logits are rounded to the dtype of the hidden states, as a plain head's would be.
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(loss.double(), truth, rtol=tolerance, atol=tolerance)
    gradients = torch.autograd.grad(loss, (hidden, weight))
    for gradient, expected in zip(
        gradients, torch.autograd.grad(truth, (hidden, weight)), strict=True
    ):
        error = (gradient.double() - expected.double()).abs().max()
        assert error <= tolerance * expected.double().abs().max()


@pytest.mark.cuda
def test_a_frozen_side_and_a_factor_take_the_block_walk() -> None:
    hidden = torch.randn(3, 4, device="cuda")
    assert not can_fuse(hidden, scale=1.0)
    assert not can_fuse(hidden.requires_grad_(), scale=0.5)
