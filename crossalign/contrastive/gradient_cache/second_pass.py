"""The second pass of GradientCache: each chunk embedded again, with the gradient of its rows.

It runs when the loss's backward reaches the embeddings of the first pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from crossalign.contrastive.gradient_cache.gradient_reduction import (
    awaited_parameters,
    without_reduction,
)
from crossalign.contrastive.gradient_cache.input_chunks import count_rows
from crossalign.contrastive.gradient_cache.replayed_state import (
    Autocast,
    RandomState,
    autocast_as,
    random_state,
    set_random_state,
)
from crossalign.precision import without_autocast


class Side(NamedTuple):
    """One input of the loss: how it is embedded, and what pass 2 must know of pass 1."""

    encode: Callable[[Any], Tensor]
    chunks: list[Any]
    chunk_size: int
    states: list[RandomState]  # before each chunk's forward
    reducing: dict[Any, bool]  # modules that embed it, and whether their backward reduces gradients


def checked_embedding(encode: Callable[[Any], Tensor], chunk: Any) -> Tensor:
    embedded = encode(chunk)
    if not isinstance(embedded, Tensor):
        raise TypeError(
            f"GradientCache: encode must return a torch.Tensor, got {type(embedded).__name__}"
        )
    rows = count_rows("chunk", chunk)
    if embedded.dim() != 2 or embedded.shape[0] != rows:
        raise ValueError(
            f"GradientCache: encode must return (n, D) with n = {rows}, the rows of the chunk, "
            f"got shape {tuple(embedded.shape)}"
        )
    return embedded


class Replay(NamedTuple):
    """Pass 2: the sides to embed again, and the settings under which they were embedded."""

    sides: list[Side]
    autocast: list[Autocast]

    def backward(self, gradients: Sequence[Tensor]) -> None:
        """Gradients are reduced across processes only in a module's last backward."""
        last_side = {module: side for side in self.sides for module in side.reducing}
        for side, gradient in zip(self.sides, gradients, strict=True):
            last = len(side.chunks) - 1
            parts = torch.split(gradient, side.chunk_size)
            for index, (chunk, part) in enumerate(zip(side.chunks, parts, strict=True)):
                reducing = [
                    module
                    for module, reduces in side.reducing.items()
                    if reduces and index == last and last_side[module] is side
                ]
                set_random_state(side.states[index])
                with torch.enable_grad(), without_reduction(side.reducing.keys() - reducing):
                    with autocast_as(self.autocast):
                        embedded = checked_embedding(side.encode, chunk)
                    awaited = [each for module in reducing for each in awaited_parameters(module)]
                    zeros = [each.new_zeros(()).expand_as(each) for each in awaited]
                    with without_autocast(embedded.device.type):
                        torch.autograd.backward([embedded, *awaited], [part, *zeros])


class SecondPass(torch.autograd.Function):
    """The embeddings of pass 1, whose gradient runs pass 2."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, anchor: Tensor, replay: Replay, *embeddings: Tensor
    ) -> tuple[Tensor, ...]:
        """anchor: requires a gradient, so that autograd records this call."""
        ctx.replay = replay  # type: ignore[attr-defined]
        return tuple(embedding.view_as(embedding) for embedding in embeddings)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "GradientCache: its gradient cannot be differentiated again; call backward() "
                "without create_graph=True"
            )
        with _same_random_state_after():
            ctx.replay.backward(gradients)
        return (None, None, *(None for _ in gradients))


@contextmanager
def _same_random_state_after() -> Iterator[None]:
    state = random_state()
    try:
        yield
    finally:
        set_random_state(state)
