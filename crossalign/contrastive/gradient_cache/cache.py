"""Contrastive batches larger than the encoder's memory: the gradient of a batch, in chunks.

Pass 1 embeds every chunk without keeping activations. The loss over all embeddings is formed as
usual; when its backward reaches the embeddings, pass 2 embeds every chunk again, with the random
numbers of pass 1, and sends the gradient of its rows back through it. By the chain rule this is the
gradient of the whole batch, times whatever the caller multiplied the loss by.

Shapes: n rows of a side (queries, keys or negatives), D features.
"""

from __future__ import annotations

import numbers
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from crossalign.contrastive.gradient_cache.gradient_reduction import without_reduction
from crossalign.contrastive.gradient_cache.input_chunks import count_rows, split_rows
from crossalign.contrastive.gradient_cache.replayed_state import autocast_state, random_state
from crossalign.contrastive.gradient_cache.second_pass import (
    Replay,
    SecondPass,
    Side,
    checked_embedding,
)
from crossalign.precision import concatenated, without_autocast

SIDES = ("query_inputs", "key_inputs", "negative_inputs")


class GradientCache:
    """A contrastive loss over more rows than the encoder's activations leave memory for.

        cache = GradientCache(encode, loss, chunk_size)
        value = cache(query_inputs, key_inputs, ids=ids)
        value.backward()

    The loss has the value, and leaves in every parameter's .grad the gradient, of one huge batch,
    under any factor that reaches its backward (gradient accumulation, a GradScaler): a training
    step can return it to any trainer. Random numbers of each chunk are replayed
    (dropout), autocast holds for both passes, frozen parameters and adapters need nothing special,
    and a side that reaches no parameter is embedded once. DistributedDataParallel, wherever it
    is in `encode`, reduces gradients once per call, with the last chunk that it embeds. Parameters
    inside the loss (a learned temperature) get their gradient; with DistributedDataParallel wrap a
    loss that has parameters on its own. Without autograd (no_grad, inference_mode) a call only
    evaluates. BatchNorm would see each chunk, and twice: avoid it.

    Args:
        encode: maps the inputs of a chunk to (n, D) embeddings with autograd. A module or a
            function; a list gives each side its own.
        loss: loss(query, key, *more, **loss_kwargs) of all embeddings; gives a scalar.
        chunk_size: rows embedded at a time, at least 1; bounds the activations held. A list gives
            each side its own.
        module: what in `encode` reduces gradients unless its no_sync() is entered. None: `encode`
            itself if it has that method, else each DistributedDataParallel module that runs in it.
        trim: cut each chunk to its own longest row where the inputs have an attention_mask. The
            host then waits once per side for the lengths. Other tensors than the usual ones of
            Hugging Face models that are as wide as the mask switch it off.

    Raises:
        TypeError: a chunk_size is not an integer.
        ValueError: a chunk_size is below 1.

    Cost: two forwards and one backward of the encoder, plus the (n, D) embeddings of each side.
    Source: Gao et al. 2021, "Scaling Deep Contrastive Learning Batch Size under Memory Limited
        Setup" (RepL4NLP).

    Examples:
        >>> encoder = torch.nn.Linear(6, 4)
        >>> cache = GradientCache(encoder, fused_contrastive_loss, chunk_size=2)
        >>> cache(torch.randn(8, 6), torch.randn(8, 6)).backward()
        >>> encoder.weight.grad.shape
        torch.Size([4, 6])
    """

    def __init__(
        self,
        encode: Callable[[Any], Tensor] | Sequence[Callable[[Any], Tensor]],
        loss: Callable[..., Tensor],
        chunk_size: int | Sequence[int],
        *,
        module: nn.Module | None = None,
        trim: bool = True,
    ) -> None:
        sizes = chunk_size if isinstance(chunk_size, list | tuple) else [cast(int, chunk_size)]
        for size in sizes:
            if isinstance(size, bool) or not isinstance(size, numbers.Integral):
                raise TypeError(
                    "GradientCache: chunk_size must be an integer, or a list of one per side, got "
                    f"{type(size).__name__}"
                )
            if size < 1:
                raise ValueError(f"GradientCache: chunk_size must be at least 1, got {size}")
        if not callable(loss):
            raise TypeError(
                f"GradientCache: loss must be a loss such as ContrastiveLoss(), got {loss!r}"
            )
        self.encode = encode
        self.loss = loss
        self.chunk_size = chunk_size
        self.module = module
        self.trim = trim

    def __call__(
        self, query_inputs: Any, key_inputs: Any, *more: Any, **loss_kwargs: Any
    ) -> Tensor:
        """The loss of the whole batch, whose .backward() does the second pass.

        Args:
            query_inputs: a tensor, or tensors nested in mappings, lists and tuples, of n rows each.
                Tensors whose first dimension is that of the attention mask, or else of the first
                tensor, are split; everything else goes into every chunk as it is.
            key_inputs: likewise n rows.
            more: further sides of any number of rows (negatives); None is handed to the loss.
            loss_kwargs: for the loss (ids, negative_owner, weights, ...), of the whole batch.

        Returns:
            The loss, (). Parameters get their gradients from its .backward(): torch.autograd.grad
            cannot name them, and differentiating twice raises.

        Raises:
            TypeError: inputs hold no tensor, or encode or loss does not return one.
            ValueError: sizes do not match, encode does not return one row per input row, a list has
                another number of entries than there are sides, or the loss is not a scalar.
        """
        inputs = (query_inputs, key_inputs, *more)
        names = [*SIDES, *(f"inputs {number + 1}" for number in range(len(SIDES), len(inputs)))]
        encoders = _per_side("encode", self.encode, len(inputs))
        sizes = _per_side("chunk_size", self.chunk_size, len(inputs))
        rows = [
            0 if value is None and index >= 2 else count_rows(names[index], value)
            for index, value in enumerate(inputs)
        ]
        if rows[0] != rows[1] and "key_ids" not in loss_kwargs:
            raise ValueError(
                f"GradientCache: key_inputs must have the {rows[0]} rows of query_inputs, got "
                f"{rows[1]}"
            )
        embeddings: list[Tensor | None] = [None] * len(inputs)
        trained: dict[int, Side] = {}
        for index, value in enumerate(inputs):
            if value is None:
                continue
            chunks = split_rows(value, rows[index], sizes[index], trim=self.trim)
            side = Side(encoders[index], chunks, sizes[index], [], {})
            embeddings[index], is_trained = self._embed(side)
            if is_trained:
                trained[index] = side
        if trained:
            connected = SecondPass.apply(  # type: ignore[no-untyped-call]
                torch.zeros((), requires_grad=True),
                Replay(list(trained.values()), autocast_state()),
                *(embeddings[index] for index in trained),
            )
            for index, connected_embeddings in zip(trained, connected, strict=True):
                embeddings[index] = connected_embeddings
        loss = self.loss(*embeddings, **loss_kwargs)
        _check_loss(loss)
        return loss

    def backward(
        self,
        query_inputs: Any,
        key_inputs: Any,
        negative_inputs: Any = None,
        **loss_kwargs: Any,
    ) -> Tensor:
        """Adds the gradient of the whole batch to every parameter's .grad: a call, then backward.

        Arguments and errors are those of a call.

        Returns:
            The loss, () without gradient.
        """
        more = () if negative_inputs is None else (negative_inputs,)
        with torch.enable_grad():
            loss = self(query_inputs, key_inputs, *more, **loss_kwargs)
            with without_autocast(loss.device.type):
                loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def _embed(self, side: Side) -> tuple[Tensor, bool]:
        """Pass 1: (n, D), and whether a gradient leads from there to a parameter.

        The first chunk runs with autograd, if that is on, to see whether it does.
        """
        embeddings: list[Tensor] = []
        is_trained = False
        for chunk in side.chunks:
            side.states.append(random_state())
            if embeddings or not torch.is_grad_enabled():
                with torch.no_grad():
                    embedded = checked_embedding(side.encode, chunk)
            else:
                with without_reduction(self._reducing(side.encode), side.reducing):
                    embedded = checked_embedding(side.encode, chunk)
            is_trained |= embedded.requires_grad
            embeddings.append(embedded.detach())
        return concatenated(embeddings), is_trained

    def _reducing(self, encode: Any) -> list[Any] | None:
        named = encode if self.module is None else self.module
        return [named] if hasattr(named, "no_sync") else None


def _per_side(name: str, value: Any, sides: int) -> list[Any]:
    if not isinstance(value, list | tuple | nn.ModuleList):
        return [value] * sides
    if len(value) != sides:
        raise ValueError(
            f"GradientCache: {name} must have one entry for each of the {sides} inputs, got "
            f"{len(value)}; repeat an entry that serves several"
        )
    return list(value)


def _check_loss(loss: Any) -> None:
    if not isinstance(loss, Tensor):
        raise TypeError(
            f"GradientCache: loss must return a torch.Tensor, got {type(loss).__name__}; leave "
            "statistics out of what it returns"
        )
    if loss.dim() != 0:
        raise ValueError(f"GradientCache: loss must return a scalar, got shape {tuple(loss.shape)}")
