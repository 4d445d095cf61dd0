"""Registers an operator: schema, kernel, shapes, autograd, and the rules of torch.func.

PyTorch's own register_autograd makes a function that torch.func cannot transform and that reads the
whole schema again in each call, a millisecond for a long one. It serves where calls are recorded;
every other call takes a second autograd function with the same formula, whose forward pass is the
operator itself, so that both ways compute the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

from crossalign.operators.schema import Record, build_schema
from crossalign.operators.transforms import ops_are_watched


def register_op(
    name: str,
    function: Callable[..., Any],
    fake: Callable[..., Any],
    *,
    arguments: Sequence[Record],
    results: type | None,
    backward: Callable[..., Any],
    setup_context: Callable[..., None] | None = None,
) -> Callable[..., Any]:
    """Registers crossalign::name and returns what calls it.

    function: takes the fields of `arguments`, one record after the other, and gives a tensor for
        each field of `results` (None: one tensor).
    fake: the same for the shapes of the results only.
    backward, setup_context: as torch.library.register_autograd takes them; `backward` of an op that
        is a gradient itself: what refuse_second_derivative gives.
    """
    qualified = f"crossalign::{name}"
    torch.library.define(qualified, build_schema(arguments, results))
    torch.library.impl(qualified, "CompositeExplicitAutograd", function)
    torch.library.register_fake(qualified, fake)
    torch.library.register_autograd(qualified, backward, setup_context=setup_context)
    op = getattr(torch.ops.crossalign, name)
    transformed = _transformed(name, op, backward, setup_context)

    def call(*values: Any) -> Any:
        return op(*values) if ops_are_watched() else transformed.apply(*values)  # type: ignore[no-untyped-call]

    return call


def refuse_second_derivative(what: str, part: str) -> Callable[..., NoReturn]:
    """The autograd formula of an op that is a gradient: none. part: what to write in PyTorch."""

    def refuse(ctx: Any, *grads: Tensor) -> NoReturn:
        raise RuntimeError(
            f"crossalign {what} cannot be differentiated twice; "
            f"for second derivatives write {part} in plain PyTorch"
        )

    return refuse


def _transformed(
    name: str,
    op: Callable[..., Any],
    formula: Callable[..., Any],
    save: Callable[..., None] | None,
) -> type[torch.autograd.Function]:
    """The op as an autograd function that torch.func can transform."""

    class Transformed(torch.autograd.Function):
        @staticmethod
        def forward(*values: Any) -> Any:
            outputs = op(*values)
            return outputs if isinstance(outputs, Tensor) else tuple(outputs)

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
            if save is not None:
                save(ctx, inputs, output)

        backward = staticmethod(formula)

        @staticmethod
        def vmap(info: Any, in_dims: tuple[int | None, ...], *values: Any) -> tuple[Any, Any]:
            """One call after the other: each is as large as the device can take by itself."""
            if info.batch_size == 0:
                raise ValueError(f"crossalign::{name}: vmap must map over at least one, got 0")
            calls = [
                Transformed.apply(  # type: ignore[no-untyped-call]
                    *(
                        value if dim is None else value.select(dim, index)
                        for value, dim in zip(values, in_dims, strict=True)
                    )
                )
                for index in range(info.batch_size)
            ]
            if isinstance(calls[0], Tensor):
                return torch.stack(calls), 0
            outputs = tuple(torch.stack(parts) for parts in zip(*calls, strict=True))
            return outputs, (0,) * len(outputs)

        @staticmethod
        def jvp(ctx: Any, *tangents: Any) -> NoReturn:
            raise RuntimeError(
                f"crossalign::{name} has no forward-mode derivative; use torch.func.grad, vjp or "
                "jacrev"
            )

    Transformed.__name__ = f"Transformed_{name}"
    return Transformed
