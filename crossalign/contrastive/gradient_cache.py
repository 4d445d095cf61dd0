"""Contrastive batches larger than the encoder's memory: the gradient of a batch, in chunks.

Pass 1 embeds every chunk without keeping activations; the loss over all embeddings then gives the
gradient of each embedding; pass 2 embeds every chunk again, with the random numbers of pass 1, and
sends that gradient back through it. By the chain rule this is the gradient of the whole batch.

Shapes: n rows of a side (queries, keys or negatives), D features.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.nn.parallel import DistributedDataParallel

from crossalign.precision import without_autocast

Inputs = Tensor | Mapping[str, Tensor]


class _RandomState(NamedTuple):
    """Generator states of the CPU and of every CUDA device."""

    cpu: Tensor
    cuda: list[Tensor]


class _Side(NamedTuple):
    """The chunks of one input, what pass 1 made of them, and what pass 2 needs."""

    chunks: list[Inputs]
    states: list[_RandomState]  # before each chunk's first forward
    embeddings: Tensor  # (n, D) leaf
    is_trained: bool  # whether any gradient leads from the embeddings to a parameter
    reducing: list[Any]  # the modules that embed it and whose backward reduces gradients


class GradientCache:
    """Leaves in every parameter's .grad what one huge contrastive batch would, chunk by chunk.

    The random numbers of each chunk are replayed (dropout), autocast holds for both passes, frozen
    parameters and adapters need nothing special, and a side that reaches no parameter is embedded
    once. DistributedDataParallel, wherever it stands in `encode`, reduces gradients once per call,
    with the last chunk that it embeds. Gradients of parameters inside the loss (a learned
    temperature) are kept; with DistributedDataParallel wrap a loss that has parameters on its own.
    BatchNorm would see each chunk, and twice: avoid it.

    Args:
        encode: maps the inputs of a chunk, a tensor or a dict of tensors as given to backward, to
            (n, D) embeddings with autograd. A module or a function.
        loss: loss(query, key), or loss(query, key, negatives) when negatives are given, of all
            embeddings; gives a scalar.
        chunk_size: rows embedded at a time, at least 1; bounds the activations held.
        module: what in `encode` reduces gradients unless its no_sync() is entered. None: `encode`
            itself if it has that method, else each DistributedDataParallel module that runs in it.

    Raises:
        ValueError: chunk_size below 1.

    Cost: two forwards and one backward of the encoder, plus the (n, D) embeddings of each side.
    Source: Gao et al. 2021, "Scaling Deep Contrastive Learning Batch Size under Memory Limited
        Setup" (RepL4NLP).
    """

    def __init__(
        self,
        encode: Callable[[Any], Tensor],
        loss: Callable[..., Tensor],
        chunk_size: int,
        *,
        module: nn.Module | None = None,
    ) -> None:
        if chunk_size < 1:
            raise ValueError(f"GradientCache: chunk_size must be at least 1, got {chunk_size}")
        self.encode = encode
        self.loss = loss
        self.chunk_size = chunk_size
        named = encode if module is None else module
        self.reducing = [named] if hasattr(named, "no_sync") else None

    def backward(
        self, query_inputs: Inputs, key_inputs: Inputs, negative_inputs: Inputs | None = None
    ) -> Tensor:
        """Adds the gradient of the whole batch to every parameter's .grad.

        Args:
            query_inputs: a tensor, or a dict of tensors, of n rows each.
            key_inputs: likewise n rows.
            negative_inputs: likewise, of any number of rows.

        Returns:
            The loss, () without gradient.

        Raises:
            TypeError: inputs are not tensors, or encode or loss does not return one.
            ValueError: sizes do not match, encode does not return one row per input row, or the
                loss is not a scalar.
        """
        inputs = {"query_inputs": query_inputs, "key_inputs": key_inputs}
        if negative_inputs is not None:
            inputs["negative_inputs"] = negative_inputs
        rows = {name: _num_rows(name, value) for name, value in inputs.items()}
        if rows["query_inputs"] != rows["key_inputs"]:
            raise ValueError(
                f"GradientCache: key_inputs must have the {rows['query_inputs']} rows of "
                f"query_inputs, got {rows['key_inputs']}"
            )
        with torch.enable_grad():
            sides = [
                self._embed(_split(value, rows[name], self.chunk_size))
                for name, value in inputs.items()
            ]
            loss = self.loss(*(side.embeddings for side in sides))
            _check_loss(loss)
            _backward(loss)
            state_after = _random_state()
            self._backward_through_chunks([side for side in sides if side.is_trained])
            _set_random_state(state_after)
        return loss.detach()

    def _embed(self, chunks: list[Inputs]) -> _Side:
        """Pass 1. The first chunk runs with autograd, to see whether this side is trained."""
        states: list[_RandomState] = []
        embeddings: list[Tensor] = []
        is_trained = False
        reducing: list[Any] = []
        for chunk in chunks:
            states.append(_random_state())
            if embeddings:
                with torch.no_grad():
                    embedded = self._checked_embedding(chunk)
            else:
                with _without_reduction(self.reducing, reducing):
                    embedded = self._checked_embedding(chunk)
            is_trained |= embedded.requires_grad
            embeddings.append(embedded.detach())
        leaf = torch.cat(embeddings).requires_grad_(is_trained)
        return _Side(chunks, states, leaf, is_trained, reducing)

    def _backward_through_chunks(self, sides: list[_Side]) -> None:
        """Pass 2. Gradients are reduced across processes in a module's last backward alone."""
        last_side = {module: side for side in sides for module in side.reducing}
        for side in sides:
            gradient = side.embeddings.grad
            if gradient is None:  # a loss that ignores this side
                gradient = torch.zeros_like(side.embeddings)
            gradients = torch.split(gradient, self.chunk_size)
            last = len(side.chunks) - 1
            for index, (chunk, state, chunk_gradient) in enumerate(
                zip(side.chunks, side.states, gradients, strict=True)
            ):
                waiting = [
                    module
                    for module in side.reducing
                    if index < last or last_side[module] is not side
                ]
                _set_random_state(state)
                with _without_reduction(waiting):
                    _backward(self._checked_embedding(chunk), chunk_gradient)

    def _checked_embedding(self, chunk: Inputs) -> Tensor:
        embedded = self.encode(chunk)
        if not isinstance(embedded, Tensor):
            raise TypeError(
                f"GradientCache: encode must return a torch.Tensor, got {type(embedded).__name__}"
            )
        rows = _num_rows("chunk", chunk)
        if embedded.dim() != 2 or embedded.shape[0] != rows:
            raise ValueError(
                f"GradientCache: encode must return (n, D) with n = {rows}, the rows of the chunk, "
                f"got shape {tuple(embedded.shape)}"
            )
        return embedded


@contextmanager
def _without_reduction(
    modules: Iterable[Any] | None, found: list[Any] | None = None
) -> Iterator[None]:
    """The modules reduce no gradients; None: nor does a DistributedDataParallel module that runs.

    found: gets the modules that were kept from it.
    """
    found = [] if found is None else found

    def enter(module: Any, _: object = None) -> None:
        if module not in found:
            found.append(module)
            stack.enter_context(module.no_sync())

    def enter_parallel(module: nn.Module, _: object) -> None:
        if isinstance(module, DistributedDataParallel):
            enter(module)

    with ExitStack() as stack:
        for module in modules or ():
            enter(module)
        if modules is None and dist.is_available() and dist.is_initialized():
            # torch.compile says that it runs such hooks twice, which does no harm here.
            stack.enter_context(warnings.catch_warnings())
            warnings.filterwarnings("ignore", "Using `torch.compile")
            stack.enter_context(register_module_forward_pre_hook(enter_parallel))
        yield


def _num_rows(name: str, inputs: Inputs) -> int:
    """Size of the first dimension, which all tensors of a side share."""
    tensors = dict(inputs) if isinstance(inputs, Mapping) else {"": inputs}
    rows = None
    for key, tensor in tensors.items():
        label = f"{name}[{key!r}]" if key else name
        if not isinstance(tensor, Tensor) or tensor.dim() == 0:
            raise TypeError(
                f"GradientCache: {label} must be a tensor whose first dimension is the batch, got "
                f"{'a 0-d tensor' if isinstance(tensor, Tensor) else type(tensor).__name__}"
            )
        if rows not in (None, tensor.shape[0]):
            raise ValueError(
                f"GradientCache: {label} must have the {rows} rows of the tensors before it, got "
                f"{tensor.shape[0]}"
            )
        rows = tensor.shape[0]
    if rows is None:
        raise ValueError(f"GradientCache: {name} must hold at least one tensor, got an empty dict")
    return rows


def _split(inputs: Inputs, rows: int, size: int) -> list[Inputs]:
    """Chunks of `size` rows, the last one of what is left; no rows make one empty chunk."""
    starts = range(0, max(rows, 1), size)
    if isinstance(inputs, Mapping):
        return [
            {name: tensor[start : start + size] for name, tensor in inputs.items()}
            for start in starts
        ]
    return [inputs[start : start + size] for start in starts]


def _check_loss(loss: Any) -> None:
    if not isinstance(loss, Tensor):
        raise TypeError(
            f"GradientCache: loss must return a torch.Tensor, got {type(loss).__name__}; leave "
            "statistics out of what it returns"
        )
    if loss.dim() != 0:
        raise ValueError(f"GradientCache: loss must return a scalar, got shape {tuple(loss.shape)}")


def _backward(output: Tensor, gradient: Tensor | None = None) -> None:
    with without_autocast(output.device.type):
        torch.autograd.backward(output, gradient)


def _random_state() -> _RandomState:
    cuda_in_use: bool = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    cuda = torch.cuda.get_rng_state_all() if cuda_in_use else []
    return _RandomState(torch.get_rng_state(), cuda)


def _set_random_state(state: _RandomState) -> None:
    torch.set_rng_state(state.cpu)
    if state.cuda:
        torch.cuda.set_rng_state_all(state.cuda)
