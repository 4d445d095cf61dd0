"""A loss whose gradients were formed with it, as a node of autograd."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def with_gradients(
    loss: Tensor,
    tensors: Sequence[Tensor | None],
    gradients: Sequence[Tensor | None],
    refuse: Callable[..., Any],
) -> Tensor:
    """loss, (), whose gradients by the tensors are these, in any dtype; None: nothing flows.

    refuse: what a second differentiation calls, see refuse_second_derivative.
    """
    attached: Tensor = _Attached.apply(  # type: ignore[no-untyped-call]
        refuse, loss, *tensors, *gradients
    )
    return attached


class _Attached(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, refuse: Callable[..., Any], loss: Tensor, *both: Tensor | None) -> Tensor:
        ctx.refuse = refuse
        ctx.save_for_backward(*both)
        return loss.view_as(loss)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        num_inputs = len(ctx.saved_tensors) // 2
        tensors, gradients = ctx.saved_tensors[:num_inputs], ctx.saved_tensors[num_inputs:]
        if torch.is_grad_enabled():
            upstream = _Once.apply(ctx.refuse, upstream, *tensors)  # type: ignore[no-untyped-call]
        scaled = [
            None if gradient is None else (gradient * upstream).to(tensor.dtype)
            for tensor, gradient in zip(tensors, gradients, strict=True)
        ]
        return (None, None, *scaled, *[None] * num_inputs)


class _Once(torch.autograd.Function):
    """The upstream gradient as it is; what is formed from it cannot be differentiated."""

    @staticmethod
    def forward(
        ctx: Any, refuse: Callable[..., Any], upstream: Tensor, *tensors: Tensor | None
    ) -> Tensor:
        ctx.refuse = refuse
        return upstream.view_as(upstream)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return ctx.refuse(ctx, *gradients)
