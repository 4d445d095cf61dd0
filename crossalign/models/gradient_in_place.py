"""The gradient of a token embedding, added to weight.grad in place instead of formed whole.

Autograd makes one gradient of the size of the whole embedding for every pass that looks tokens up,
and one more for the output head it is tied to, and then adds them. With 262,144 tokens of width 640
each is 671 MB, of which a batch touches some thousand rows. Here the rows that a pass looked up are
added to weight.grad, and no other is read or written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


class RowGradients(TorchFunctionMode):
    """While it is on, looking up tokens in `weight` adds to weight.grad in place, in the backward.

    For a leaf whose gradient no hook waits for: one process, no DistributedDataParallel. Calls with
    max_norm, scale_grad_by_freq or sparse stay as they are.
    """

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = weight

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[Any],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.embedding and torch.is_grad_enabled():
            names = ["input", "weight", "padding_idx", "max_norm", "norm_type"]
            names += ["scale_grad_by_freq", "sparse"]
            given = {**dict(zip(names, args, strict=False)), **kwargs}
            is_plain = given.get("max_norm") is None and not given.get("scale_grad_by_freq")
            if given["weight"] is self.weight and is_plain and not given.get("sparse"):
                return _RowsInPlace.apply(  # type: ignore[no-untyped-call]
                    self.weight, given["input"], given.get("padding_idx")
                )
        return func(*args, **kwargs)


class _RowsInPlace(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, tokens: Tensor, padding: int | None) -> Tensor:
        ctx.weight, ctx.tokens, ctx.padding = weight, tokens, padding
        return F.embedding(tokens, weight, padding)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, None, None]:
        if torch.is_grad_enabled():
            raise RuntimeError("embedding: create_graph must be False, got True")
        weight: Tensor = ctx.weight
        tokens = ctx.tokens.flatten()
        grad = grad.reshape(len(tokens), -1)
        if ctx.padding is not None:  # whose row gets no gradient
            is_text = tokens != ctx.padding % len(weight)
            tokens, grad = tokens[is_text], grad[is_text]
        rows, place = tokens.unique(return_inverse=True)
        # Summed over equal tokens in the order of the batch, whatever the number of threads.
        summed = torch.ops.aten.embedding_dense_backward(grad, place, len(rows), -1, False)
        total = gradient_of(weight)
        total[rows] = total[rows] + summed
        return None, None, None


def gradient_of(weight: Tensor) -> Tensor:
    """weight.grad, made of zeros where there is none yet."""
    if weight.grad is None:
        weight.grad = torch.zeros_like(weight)
    return weight.grad
