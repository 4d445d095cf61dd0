"""One shipped kernel configuration, described so that it compiles where no GPU is."""

from __future__ import annotations

from typing import Any, NamedTuple

# The GPUs that one entry of the tile tables serves (crossalign.kernels.tiles.architecture).
GPUS_OF_ENTRY = {80: (80, 86, 89), 90: (90,), 100: (100, 120)}
ALL_GPUS = tuple(gpu for gpus in GPUS_OF_ENTRY.values() for gpu in gpus)


class CompileCase(NamedTuple):
    """A kernel, the types of its arguments and its launch shape.

    signature maps every kernel parameter to a Triton type ("*bf16", "i64", "fp32", "constexpr"), or
    to a tuple of them.
    """

    name: str
    kernel: Any
    signature: dict[str, Any]
    constexprs: dict[Any, object]  # by name, or by (position, position inside of a tuple)
    num_warps: int
    num_stages: int
    architectures: tuple[int, ...] = ALL_GPUS  # where this configuration is the shipped one


def compile_case(
    name: str,
    kernel: Any,
    constexprs: dict[str, object],
    types: dict[str, Any],
    num_warps: int,
    num_stages: int = 3,
    architectures: tuple[int, ...] = ALL_GPUS,
) -> CompileCase:
    """constexprs: what is fixed; types: of parameters that are no float32 pointer or int32, and of
    tuples, in which None is fixed too."""
    signature, fixed = {}, dict[Any, object](constexprs)
    for position, parameter in enumerate(kernel.arg_names):
        default = "*fp32" if parameter.endswith("_ptr") else "i32"
        kind = "constexpr" if parameter in constexprs else types.get(parameter, default)
        if isinstance(kind, tuple):
            fixed |= {(position, index): None for index, each in enumerate(kind) if each is None}
            given = ["constexpr" if each is None else each for each in kind]
            kind = type(kind)(*given) if hasattr(kind, "_fields") else tuple(given)
        signature[parameter] = kind
    return CompileCase(name, kernel, signature, fixed, num_warps, num_stages, architectures)
