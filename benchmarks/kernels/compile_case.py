"""One shipped kernel configuration, described so that it compiles where no GPU is."""

from __future__ import annotations

from typing import Any, NamedTuple


class CompileCase(NamedTuple):
    """A kernel, the types of its arguments and its launch shape.

    signature maps every kernel parameter to a Triton type ("*bf16", "i64", "fp32", "constexpr").
    """

    name: str
    kernel: Any
    signature: dict[str, str]
    constexprs: dict[str, object]
    num_warps: int
    num_stages: int
    architectures: tuple[int, ...] = (80, 90, 100)  # where this configuration is the shipped one


def compile_case(
    name: str,
    kernel: Any,
    constexprs: dict[str, object],
    types: dict[str, str],
    num_warps: int,
    num_stages: int = 3,
    architectures: tuple[int, ...] = (80, 90, 100),
) -> CompileCase:
    """constexprs: what is fixed; types: of parameters that are no float32 pointer or int32."""
    signature = {}
    for parameter in kernel.arg_names:
        default = "*fp32" if parameter.endswith("_ptr") else "i32"
        is_fixed = parameter in constexprs
        signature[parameter] = "constexpr" if is_fixed else types.get(parameter, default)
    return CompileCase(name, kernel, signature, constexprs, num_warps, num_stages, architectures)
